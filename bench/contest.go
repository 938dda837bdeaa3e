package main

import (
	"errors"
	"regexp"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
)

// contest is one case: several peers do the same job.
type contest struct {
	name  string // "Group/case"
	modes []mode
	peers []peer
}

// mode is by how many goroutines at once the job is done.
type mode struct {
	name       string
	goroutines int // 0: as many as run at once
}

func (m mode) callers() int {
	if m.goroutines == 0 {
		return runtime.GOMAXPROCS(0)
	}
	return m.goroutines
}

// serial and parallel are the modes of what takes no time to speak of.
func serial() mode   { return mode{name: "serial", goroutines: 1} }
func parallel() mode { return mode{name: "parallel"} }

// peer is one of those compared. The peer called "backstay" is what the others
// are compared with.
type peer struct {
	name   string
	module string // whose version is of interest; may be empty
	setup  func(*stage) (job, error)
}

const ours = "backstay"

// job does the peer's part for as long as the loop says, in one goroutine of
// perhaps several.
type job func(*loop) error

// stateless is the setup of what needs none.
func stateless(j job) func(*stage) (job, error) {
	return func(*stage) (job, error) { return j, nil }
}

// stage collects what must be taken down when a peer has been measured.
type stage struct{ cleanups []func() }

func (s *stage) cleanup(f func()) { s.cleanups = append(s.cleanups, f) }

func (s *stage) close() {
	for _, f := range slices.Backward(s.cleanups) {
		f()
	}
	s.cleanups = nil
}

// loop counts the calls of one goroutine. It costs less than a [testing.PB],
// which matters where a call takes a few nanoseconds.
type loop struct {
	goroutine int // numbered from 0
	left      int
	more      func() int
}

// next reports whether there is another call to make.
func (l *loop) next() bool {
	if l.left > 0 {
		l.left--
		return true
	}
	return l.refill()
}

func (l *loop) refill() bool {
	if l.left = l.more(); l.left == 0 {
		return false
	}
	l.left--
	return true
}

// warmCalls is how many calls each goroutine makes before those that are counted: they
// grow its stack, and fill the pools that a collection before the sample has emptied.
const warmCalls = 8

// drive has a job done n times in all, and calls begin when all goroutines have warmed
// up.
func drive(j job, goroutines, n int, begin func()) error {
	// As large as possible, so that the counter is not what is measured, but so
	// small that all goroutines end at the same time.
	grain := int64(min(max(n/(goroutines*64), 1), 1024))
	if goroutines == 1 {
		grain = int64(n)
	}
	var left, cold atomic.Int64
	left.Store(int64(n))
	cold.Store(int64(goroutines))
	warm := make(chan struct{})
	arrive := func() {
		if cold.Add(-1) == 0 {
			begin()
			close(warm)
		}
	}
	errs := make([]error, goroutines)
	var all sync.WaitGroup
	for i := range goroutines {
		all.Go(func() {
			arrived := false
			more := func() int {
				if !arrived {
					arrived = true
					arrive()
					<-warm
				}
				after := left.Add(-grain)
				return int(max(0, min(grain, after+grain)))
			}
			errs[i] = j(&loop{goroutine: i, left: warmCalls, more: more})
			if !arrived { // it has failed: the others need not wait
				arrive()
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// everything lists all cases, in the order in which they are measured.
func everything() []contest {
	return slices.Concat(
		breakerContests(), retryContests(), retryLayerContests(), hedgeContests(), limitContests(), pickContests(), cacheContests(),
		nopContests(), loopbackContests(), grpcContests(),
	)
}

// each is a job that calls f.
func each(f func() error) job {
	return func(l *loop) error {
		for l.next() {
			if err := f(); err != nil {
				return err
			}
		}
		return nil
	}
}

// always is the setup of a job that calls f and needs nothing else.
func always(f func() error) func(*stage) (job, error) {
	return stateless(each(f))
}

// matching returns the cases, with those of their modes, whose names match.
func matching(all []contest, wanted *regexp.Regexp) []contest {
	var some []contest
	for _, c := range all {
		c.modes = slices.DeleteFunc(slices.Clone(c.modes), func(m mode) bool {
			return !wanted.MatchString(c.name + "/" + m.name)
		})
		if len(c.modes) > 0 {
			some = append(some, c)
		}
	}
	return some
}
