package breaker

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/outcome"
)

// model is a breaker written down as plainly as can be: it keeps every event and
// counts anew each time.
type model struct {
	cfg              Config
	t                int64
	mode             Mode
	state            State
	period           int // leases of other periods have no effect
	events           *[]modelEvent
	until, closedAt  int64
	opens            int
	probes, verdicts []*modelLease // in their places; that have succeeded
	resting          []int64       // places that are free again at a time
	credit           float64
}

type modelEvent struct {
	t                     int64
	calls, failures, slow int64
}

type modelLease struct {
	period, expires, given int64
	events                 *[]modelEvent
	probe, passed, over    bool
}

func newModel(cfg Config) *model {
	m := &model{cfg: cfg, closedAt: longAgo}
	m.enter(Closed)
	return m
}

// effective is what calls meet.
func (m *model) effective() State {
	switch m.mode {
	case ForcedOpen:
		return Open
	case ForcedClosed:
		return Closed
	default:
		return m.state
	}
}

func (m *model) enter(s State) {
	was := m.effective()
	m.state = s
	m.renew(was)
}

func (m *model) renew(was State) {
	m.period++
	m.probes, m.verdicts, m.resting, m.credit = nil, nil, nil, 1
	if m.events == nil || was != Closed || m.effective() != Closed {
		m.events = new([]modelEvent)
	}
}

func (m *model) setMode(mode Mode) {
	if m.mode != mode {
		was := m.effective()
		m.mode = mode
		m.renew(was)
	}
}

func (m *model) reset() {
	m.state, m.opens, m.closedAt, m.events = Closed, 0, longAgo, nil
	m.renew(Closed)
}

func (m *model) open() {
	if m.state == Closed && m.t-m.closedAt >= int64(m.cfg.Window) {
		m.opens = 0
	}
	m.opens++
	open := m.cfg.OpenTime
	for range m.opens - 1 {
		open = min(2*open, m.cfg.MaxOpenTime)
	}
	m.until = m.t + int64(open)
	m.enter(Open)
}

func (m *model) counts() (calls, failures, slow int64) {
	width := int64(m.cfg.Window) / buckets
	for _, e := range *m.events {
		if e.t/width > m.t/width-buckets {
			calls, failures, slow = calls+e.calls, failures+e.failures, slow+e.slow
		}
	}
	return max(calls, failures, slow), failures, slow
}

func (m *model) acquire() (l *modelLease, ok bool) {
	l = &modelLease{period: int64(m.period), given: m.t, events: m.events}
	if m.mode == ForcedOpen {
		return nil, false
	}
	if m.effective() == Open && m.t >= m.until {
		m.enter(HalfOpen)
		l.period, l.events = int64(m.period), m.events
	}
	switch m.effective() {
	case Closed:
		if ramped := m.t - m.closedAt; m.mode != ForcedClosed && ramped < int64(m.cfg.RampUp) {
			m.credit += float64(ramped) / float64(m.cfg.RampUp)
			if m.credit < 1 {
				return l, m.mode == Disabled
			}
			m.credit--
		}
		return l, true
	case Open:
		return l, m.mode == Disabled
	case HalfOpen:
	}
	taken := len(m.verdicts)
	var live []*modelLease
	for _, p := range m.probes {
		if p.expires > m.t {
			live = append(live, p)
		}
	}
	var resting []int64
	for _, free := range m.resting {
		if free > m.t {
			resting = append(resting, free)
		}
	}
	if taken+len(live)+len(resting) >= m.cfg.Probes {
		return l, m.mode == Disabled
	}
	// An expired probe keeps its say until its very place is taken; the model
	// never lets one answer late, so it may go.
	m.probes, m.resting = live, resting
	l.probe, l.expires = true, m.t+int64(m.cfg.ProbeTimeout)
	m.probes = append(m.probes, l)
	return l, true
}

func (m *model) answered(l *modelLease, c outcome.Class) {
	if c == outcome.Throttled {
		c = outcome.Neutral
	}
	slow := m.cfg.SlowTime > 0 && m.t-l.given >= int64(m.cfg.SlowTime)
	current := l.period == int64(m.period)
	l.passed = c == outcome.Success
	if c != outcome.Neutral {
		*l.events = append(*l.events, modelEvent{m.t, 1, count(c == outcome.Failure), count(slow)})
	}
	if !current {
		if l.probe {
			l.over = true
			if c != outcome.Neutral { // nobody counts it
				*l.events = (*l.events)[:len(*l.events)-1]
			}
		}
		return
	}
	if !l.probe {
		if c == outcome.Failure || (slow && c == outcome.Success) {
			m.trip()
		}
		return
	}
	for i, p := range m.probes {
		if p == l {
			m.probes = append(m.probes[:i:i], m.probes[i+1:]...)
		}
	}
	switch {
	case c == outcome.Neutral:
		m.resting = append(m.resting, l.given+int64(m.cfg.ProbeInterval))
	case c == outcome.Failure || slow:
		m.open()
	default:
		m.verdicts = append(m.verdicts, l)
		if len(m.verdicts) == m.cfg.Probes {
			m.closedAt = m.t
			m.enter(Closed)
		}
	}
}

func (m *model) done(l *modelLease, c outcome.Class) {
	if l.over || !l.passed || c != outcome.Failure {
		return
	}
	*l.events = append(*l.events, modelEvent{m.t, 0, 1, 0})
	switch {
	case l.period != int64(m.period):
	case l.probe:
		m.open()
	default:
		m.trip()
	}
}

func (m *model) trip() {
	if m.effective() != Closed || m.mode == ForcedClosed {
		return
	}
	calls, failures, slow := m.counts()
	if calls < int64(m.cfg.MinCalls) {
		return
	}
	if float64(failures)/float64(calls) >= m.cfg.FailureRate ||
		m.cfg.SlowTime > 0 && float64(slow)/float64(calls) >= m.cfg.SlowRate {
		m.open()
	}
}

func count(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

func TestABreakerBehavesLikeItsModel(t *testing.T) {
	for seed := range uint64(300) {
		random := rand.New(rand.NewPCG(seed, 1))
		given := &Config{
			MinCalls: 1 + random.IntN(8), FailureRate: []float64{0.3, 0.5, 1}[random.IntN(3)], Jitter: -1,
			Window: time.Second, OpenTime: 100 * time.Millisecond, MaxOpenTime: time.Second,
			Probes: 1 + random.IntN(3), ProbeTimeout: 300 * time.Millisecond, ProbeInterval: 50 * time.Millisecond,
			RampUp:   []time.Duration{0, 200 * time.Millisecond}[random.IntN(2)],
			SlowTime: []time.Duration{0, 100 * time.Millisecond}[random.IntN(2)],
		}
		set, err := given.resolve()
		require.NoError(t, err)
		b, err := New("model", given)
		require.NoError(t, err)
		m := newModel(*set)

		type pair struct {
			real  *Lease
			model *modelLease
			said  bool
		}
		var out []pair
		healthy := random.IntN(100)
		for step := range 1000 {
			now := b.epoch.Add(time.Duration(m.t))
			switch op := random.IntN(100); {
			case op < 30:
				m.t += random.Int64N(int64(60 * time.Millisecond))
			case op < 31:
				m.t += random.Int64N(int64(3 * time.Second))
			case op < 32:
				healthy = random.IntN(100)
			case op < 33:
				switch random.IntN(6) {
				case 0:
					b.ForceOpen()
					m.setMode(ForcedOpen)
				case 1:
					b.ForceClosed()
					m.setMode(ForcedClosed)
				case 2:
					b.Disable()
					m.setMode(Disabled)
				case 3:
					b.Reset()
					m.reset()
				default:
					b.Release()
					m.setMode(Auto)
				}
			case op < 65:
				l, err := b.Acquire(now)
				ml, ok := m.acquire()
				if ok != (err == nil) {
					t.Fatalf("seed %d, step %d: want admitted %v, got %v", seed, step, ok, err)
				}
				if ok {
					out = append(out, pair{real: &l, model: ml})
				}
			case len(out) > 0:
				i := random.IntN(len(out))
				p := &out[i]
				if p.model.probe && p.model.expires <= m.t {
					out = append(out[:i], out[i+1:]...) // lost for good
					continue
				}
				o := outcome.Outcome{Err: errors.New("failed")}
				if random.IntN(100) < healthy {
					o = outcome.Outcome{}
				} else {
					o.Class = outcome.Class(1 + random.IntN(3))
				}
				if !p.said {
					m.answered(p.model, o.Class)
				}
				if !p.said && random.IntN(2) == 0 {
					p.real.Answered(now, o)
					p.said = true
					break
				}
				if p.said {
					m.done(p.model, o.Class)
				}
				p.real.Done(now, o)
				out = append(out[:i], out[i+1:]...)
			}
			s := b.Snapshot(b.epoch.Add(time.Duration(m.t)))
			calls, failures, slow := m.counts()
			got := Snapshot{State: s.State, Opens: s.Opens, Calls: s.Calls, Failures: s.Failures, Slow: s.Slow}
			want := Snapshot{State: m.effective(), Opens: m.opens, Calls: calls, Failures: failures, Slow: slow}
			if got != want {
				t.Fatalf("seed %d, step %d: want %+v, got %+v", seed, step, want, got)
			}
		}
	}
}
