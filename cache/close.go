package cache

import (
	"context"
	"time"
)

// closeWait is how long Close waits for loaders that ignore their context.
const closeWait = 5 * time.Second

// Close empties the cache, cancels the loads under way and waits until they have
// ended, but no longer than 5 s; then, or if it is called by a loader, it returns
// an error that says so. Afterwards Get returns [ErrClosed], as it does to those
// whose load was cancelled, and Set does nothing. Close may be called again.
//
// A cache that is merely dropped leaks nothing: only loads have goroutines.
func (c *Cache[K, V]) Close() error {
	now := c.clock.now()
	for i := range c.shards {
		s := &c.shards[i]
		var cancels []context.CancelFunc
		s.mu.Lock()
		s.closed = true
		for key := range s.flights {
			s.detach(key)
		}
		for f := range s.strays {
			cancels = append(cancels, f.cancel)
		}
		gone := s.purge(now, nil)
		s.mu.Unlock()
		for _, cancel := range cancels {
			cancel()
		}
		c.report(gone)
	}

	ended := make(chan struct{})
	go func() {
		c.loads.Wait()
		close(ended)
	}()
	timeout := time.NewTimer(closeWait)
	defer timeout.Stop()
	select {
	case <-ended:
		return nil
	case <-timeout.C:
		return errRunning
	}
}
