package backstay

import (
	"maps"
	"time"

	"github.com/backstay/backstay/internal/clock"
)

// makeRoom keeps the number of idle services within its bound after s has been
// added, and has them looked at when the first may have had its time. c.mu is
// held.
func (c *Client) makeRoom(s *service) {
	if c.sweeper == nil && c.cfg.IdleTimeout > 0 {
		c.sweeper = time.AfterFunc(c.cfg.IdleTimeout, c.sweep)
	}
	if c.cfg.MaxIdleServices < 0 {
		return
	}
	for busy := map[*service]bool{s: true}; ; {
		idle, oldest := 0, (*service)(nil)
		for _, other := range c.services {
			if !other.idle {
				continue
			}
			idle++
			if !busy[other] && (oldest == nil || other.lastUsed().Before(oldest.lastUsed())) {
				oldest = other
			}
		}
		if idle <= c.cfg.MaxIdleServices || oldest == nil {
			return // with all of them busy there is one more for the time being
		}
		if oldest.busy() || !c.release(oldest) {
			busy[oldest] = true
		}
	}
}

func (s *service) lastUsed() time.Time { return s.epoch.Add(time.Duration(s.used.Load())) }

// sweep lets go the services that nobody has used for long.
func (c *Client) sweep() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return
	}
	now := clock.Now()
	next := c.cfg.IdleTimeout
	left := false
	for _, s := range c.services {
		if !s.idle {
			continue
		}
		rest := c.cfg.IdleTimeout - now.Sub(s.lastUsed())
		switch {
		case rest > 0:
			next = min(next, rest)
			left = true
		case s.busy() || !c.release(s):
			left = true
		}
	}
	if left {
		c.sweeper.Reset(max(next, time.Second))
	} else {
		c.sweeper = nil
	}
}

// release lets a service go, unless a call has just entered it. c.mu is held.
func (c *Client) release(s *service) bool {
	if s.held > 0 || !s.calls.CompareAndSwap(0, letGo) {
		return false
	}
	delete(c.services, s.name)
	c.spell(func(hosts *spelled) {
		for _, by := range [...]map[string]*service{hosts.http, hosts.https} {
			maps.DeleteFunc(by, func(_ string, other *service) bool { return other == s })
		}
	})
	c.leaving.Go(s.close)
	return true
}
