package balancer_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/breaker"
	"github.com/backstay/backstay/limit"
	"github.com/backstay/backstay/outcome"
)

// A node counts its good answers by itself and hands them on to its breaker in
// sums. Whatever happens in whatever order, the breaker's window must hold what a
// list of all answers says, up to this slack: a good answer counts for at most a
// tally's time longer than the window is, and one whose body broke after it was
// handed on counts as another call.
type tallyModel struct {
	start  time.Time
	events []tallyEvent
}

type tallyEvent struct {
	at       time.Time
	low      int // calls, as few as may count
	high     int // as many
	failures int
}

const (
	tallyTime = 1 << 29 * time.Nanosecond
	window    = 10 * time.Second
	step      = window / 10
)

func (m *tallyModel) add(low, high, failures int) {
	m.events = append(m.events, tallyEvent{time.Now(), low, high, failures})
}

// counts returns what the breaker's window should hold now.
func (m *tallyModel) counts() (low, high, failures int64) {
	bucket := func(t time.Time) int64 { return int64(t.Sub(m.start) / step) }
	oldest := bucket(time.Now()) - 10
	for _, e := range m.events {
		if bucket(e.at) > oldest {
			low += int64(e.low)
			failures += int64(e.failures)
		}
		if bucket(e.at.Add(tallyTime)) > oldest {
			high += int64(e.high)
		}
	}
	return max(low, failures), max(high, failures), failures
}

// tallied is a lease and the generation of the breaker that gave it.
type tallied struct {
	*balancer.Lease
	generation int
	good       bool
}

type tallyTest struct {
	*rig
	model  tallyModel
	node   *balancer.Node
	random *rand.Rand
	opened int
}

// generation is how often the breaker has changed its state.
func (x *tallyTest) generation() int {
	return len(backstaytest.EventsOf[breaker.StateChanged](x.rec))
}

func (x *tallyTest) acquire() (tallied, bool) {
	l, err := x.Acquire(x.t.Context(), balancer.Call{})
	if err != nil {
		if !errors.Is(err, limit.ErrFull) { // so soon after it has closed
			require.NotEqual(x.t, breaker.Closed, x.node.Breaker().State())
		}
		return tallied{}, false
	}
	return tallied{Lease: &l, generation: x.generation()}, true
}

// report tells a lease's outcome by act, and checks what came of it.
func (x *tallyTest) report(l tallied, o outcome.Outcome, broke bool, act func()) {
	generation := x.generation()
	counts := l.generation == generation && x.node.Breaker().State() == breaker.Closed
	act()
	if x.node.Breaker().State() == breaker.Closed && x.generation() != generation {
		x.model.events = nil // has just closed
		return
	}
	if !counts {
		require.False(x.t, x.generation() != generation && generation == l.generation+1,
			"what belongs to an earlier generation changed the state")
		return
	}
	failed := o.Class == outcome.Failure
	switch {
	case failed && broke:
		x.model.add(0, 1, 1) // in place of the success, or besides it
	case failed:
		x.model.add(1, 1, 1)
	case o.Class == outcome.Success:
		x.model.add(1, 1, 0)
	}
	if !failed {
		require.Equal(x.t, generation, x.generation(), "only failures open")
		return
	}
	low, high, failures := x.model.counts()
	if x.generation() != generation {
		require.GreaterOrEqual(x.t, high, int64(20))
		require.GreaterOrEqual(x.t, 2*failures, low)
		x.model.events = nil
		x.opened++
		return
	}
	require.False(x.t, low >= 20 && 2*failures >= high, "%d to %d calls, %d failures, and not open", low, high, failures)
	s := x.node.Breaker().Snapshot(time.Now())
	require.Equal(x.t, failures, s.Failures)
	require.GreaterOrEqual(x.t, s.Calls, low)
	require.LessOrEqual(x.t, s.Calls, high)
}

func (x *tallyTest) outcome() outcome.Outcome {
	switch p := x.random.IntN(20); {
	case p < 13:
		return success
	case p < 17:
		return failure
	case p < 18:
		return throttled(time.Second)
	default:
		return cancelled
	}
}

func (x *tallyTest) pass() {
	switch x.random.IntN(30) {
	case 0:
		time.Sleep(window + time.Duration(x.random.Int64N(int64(window))))
	case 1, 2:
		time.Sleep(time.Duration(x.random.Int64N(int64(3 * time.Second))))
	case 3, 4, 5, 6, 7, 8:
		time.Sleep(time.Duration(x.random.Int64N(int64(300 * time.Millisecond))))
	}
}

func (x *tallyTest) run(steps int) {
	var waiting, reading []tallied
	take := func(list *[]tallied) tallied {
		i := x.random.IntN(len(*list))
		l := (*list)[i]
		(*list)[i] = (*list)[len(*list)-1]
		*list = (*list)[:len(*list)-1]
		return l
	}
	for range steps {
		x.pass()
		switch x.random.IntN(6) {
		case 0, 1: // at once
			if l, ok := x.acquire(); ok {
				o := x.outcome()
				x.report(l, o, false, func() { l.Done(time.Time{}, o) })
			}
		case 2:
			if l, ok := x.acquire(); ok {
				waiting = append(waiting, l)
			}
		case 3, 4:
			if len(waiting) == 0 {
				continue
			}
			l, o := take(&waiting), x.outcome()
			l.good = o.Class == outcome.Success
			x.report(l, o, false, func() { l.Answered(time.Time{}, o) })
			reading = append(reading, l)
		case 5:
			if len(reading) == 0 {
				continue
			}
			l, o := take(&reading), success
			if x.random.IntN(3) == 0 {
				o = failure
			}
			if l.good && o.Class == outcome.Failure {
				x.report(l, o, true, func() { l.Done(time.Time{}, o) })
			} else {
				before := x.generation()
				l.Done(time.Time{}, o)
				require.Equal(x.t, before, x.generation(), "the answer has been judged")
			}
		}
	}
	for _, l := range append(waiting, reading...) {
		l.Done(time.Time{}, cancelled)
	}
	idle(x.t, x.Nodes())
}

func TestTalliedAnswersReachTheBreaker(t *testing.T) {
	runs := 300
	if underRace {
		runs = 60
	}
	for name, cfg := range map[string]breaker.Config{
		"that counts sums":     {},
		"that sees every call": {Consecutive: 1000},
	} {
		t.Run("a breaker "+name, func(t *testing.T) {
			opened := 0
			for seed := range uint64(runs) {
				t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						r := newRig(t, exact(balancer.Config{Breaker: cfg}), endpoints(1))
						x := &tallyTest{
							rig: r, node: r.Nodes()[0], model: tallyModel{start: time.Now()},
							random: rand.New(rand.NewPCG(seed, 1)),
						}
						x.run(500)
						opened += x.opened
					})
				})
			}
			require.Greater(t, opened, runs/10, "or else this has shown less than it should")
		})
	}
}

func TestTallyLastsNoLongerThanAStepOfTheWindow(t *testing.T) {
	for _, window := range []time.Duration{10 * time.Millisecond, 100 * time.Millisecond, time.Second, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, &balancer.Config{Breaker: breaker.Config{Window: window, FailureRate: -1}}, endpoints(1))
			for range 19 {
				r.on(addr(0)).Done(time.Time{}, success)
			}
			time.Sleep(window + window/10 + time.Nanosecond)
			r.on(addr(0)).Done(time.Time{}, failure)
			s := r.Nodes()[0].Breaker().Snapshot(time.Now())
			require.EqualValues(t, 1, s.Calls, "a window of %v", window)
			require.EqualValues(t, 1, s.Failures)
		})
	}
}
