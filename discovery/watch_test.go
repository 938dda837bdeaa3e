package discovery

import (
	"context"
	"iter"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// yielded is one yield of a watch, and when it came.
type yielded struct {
	at  time.Duration
	set Set
	err error
}

// recording is a watch on a goroutine of its own and what it has yielded.
type recording struct {
	cancel context.CancelFunc
	ended  chan struct{}

	mu   sync.Mutex
	all  []yielded
	news int // how many of all the test has taken
}

// record watches until the test ends, or until stop.
func record(ctx context.Context, t *testing.T, r Resolver, service string) *recording {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	rec := &recording{cancel: cancel, ended: make(chan struct{})}
	began := time.Now()
	go func() {
		defer close(rec.ended)
		for set, err := range r.Watch(ctx, service) {
			rec.mu.Lock()
			rec.all = append(rec.all, yielded{time.Since(began), set, err})
			rec.mu.Unlock()
		}
	}()
	t.Cleanup(rec.stop)
	return rec
}

func (r *recording) stop() {
	r.cancel()
	<-r.ended
}

// take returns what has been yielded since the last take. In a bubble it lets
// everything that can happen now happen first.
func (r *recording) take() []yielded {
	synctest.Wait()
	return r.fresh()
}

func (r *recording) fresh() []yielded {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.all[r.news:]
	r.news = len(r.all)
	return out
}

// source is a resolver that a test drives: each watch yields what is pushed, and
// ends when told to.
type source struct {
	steps chan step

	mu      sync.Mutex
	watches []time.Time // when they began
	hints   int
}

type step struct {
	set Set
	err error
	end bool // after the yield, if there is one
	nop bool // no yield
}

func newSource() *source { return &source{steps: make(chan step)} }

func (s *source) Watch(ctx context.Context, _ string) iter.Seq2[Set, error] {
	return func(yield func(Set, error) bool) {
		s.mu.Lock()
		s.watches = append(s.watches, time.Now())
		s.mu.Unlock()
		for {
			select {
			case <-ctx.Done():
				return
			case <-Hints(ctx):
				s.mu.Lock()
				s.hints++
				s.mu.Unlock()
			case st := <-s.steps:
				if !st.nop && !yield(st.set, st.err) || st.end {
					return
				}
			}
		}
	}
}

func (s *source) push(sets ...Set) {
	for _, set := range sets {
		s.steps <- step{set: set}
	}
}

func (s *source) fail(err error) { s.steps <- step{err: err} }

func (s *source) began() []time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]time.Time(nil), s.watches...)
}

func (s *source) hinted() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hints
}

// of is a set of endpoints with nothing but addresses.
func of(addrs ...string) Set { return Set{Endpoints: Addrs(addrs...)} }

func addrsOf(set Set) []string {
	addrs := make([]string, len(set.Endpoints))
	for i, e := range set.Endpoints {
		addrs[i] = e.Addr
	}
	return addrs
}

// bubble runs f in a synctest bubble, which fails if f leaves a goroutine.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}
