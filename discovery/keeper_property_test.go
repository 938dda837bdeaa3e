package discovery

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// keeperModel is what a keeper promises, said in another way: it looks only at
// what went in and what came out.
type keeperModel struct {
	t      *testing.T
	k      keeper
	now    time.Time
	want   []string // the last good set's addresses, sorted; nil before there is one
	empty  time.Time
	hold   bool // the source has said empty since then, and nothing else
	failed bool // the last thing that went in was a failure

	got      []string
	gotAny   bool
	gotAt    time.Time
	gotErr   bool // the last thing that came out was a failure
	sinceErr bool // one has come out since the last set
}

func (m *keeperModel) drain() {
	for _, u := range m.k.ready(m.now) {
		if u.err != nil {
			if !isWarning(u.err) {
				m.gotErr, m.sinceErr = true, true
			}
			continue
		}
		addrs := sortedAddrs(u.set)
		if m.gotAny {
			require.GreaterOrEqual(m.t, m.now.Sub(m.gotAt), m.k.window, "sets keep their distance")
			require.True(m.t, m.sinceErr || !slices.Equal(addrs, m.got), "equal sets are not passed on again")
		}
		require.Len(m.t, slices.Compact(slices.Clone(addrs)), len(addrs), "no Key twice")
		for _, e := range u.set.Endpoints {
			require.NoError(m.t, e.Validate())
		}
		m.got, m.gotAny, m.gotAt, m.gotErr, m.sinceErr = addrs, true, m.now, false, false
	}
}

// pass lets time pass, waking the keeper when it asks for it.
func (m *keeperModel) pass(d time.Duration) {
	until := m.now.Add(d)
	for {
		due := m.k.due()
		if due.IsZero() || due.After(until) {
			break
		}
		require.False(m.t, due.Before(m.now), "nothing that is due is left undone")
		m.now = due
		m.age()
		m.drain()
	}
	m.now = until
	m.age()
}

// age is the end of an empty set's grace.
func (m *keeperModel) age() {
	if m.hold && m.now.Sub(m.empty) >= m.k.grace {
		m.hold, m.want, m.failed = false, []string{}, false
	}
}

func (m *keeperModel) offer(set Set) {
	m.k.offer(m.now, set)
	switch valid, _ := validEndpoints(set.Endpoints); {
	case len(valid) > 0 || len(set.Endpoints) == 0 && (set.Authoritative || m.gotAny && len(m.got) == 0):
		m.want, m.hold, m.failed = sortedAddrs(Set{Endpoints: valid}), false, false
	case len(set.Endpoints) > 0:
		m.hold, m.failed = false, true
	case !m.hold:
		m.hold, m.empty, m.failed = true, m.now, true
	}
	m.drain()
}

func (m *keeperModel) fail() {
	m.k.fail(errDown)
	m.hold, m.failed = false, true
	m.drain()
}

func sortedAddrs(set Set) []string {
	addrs := addrsOf(set)
	slices.Sort(addrs)
	return addrs
}

func TestKeeperAgainstAModel(t *testing.T) {
	for seed := range uint64(200) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			m := &keeperModel{t: t, now: time.Unix(1e9, 0), k: keeper{
				service: "orders", grace: 30 * time.Second, window: 100 * time.Millisecond,
			}}
			for range 200 {
				switch n := random.IntN(10); {
				case n < 5:
					var set Set
					for range 1 + random.IntN(4) {
						set.Endpoints = append(set.Endpoints, Endpoint{
							Addr:   []string{"a:1", "b:1", "c:1", "no address"}[random.IntN(4)],
							Weight: float64(random.IntN(12) / 11 * -1),
						})
					}
					m.offer(set)
				case n == 5:
					m.offer(Set{})
				case n == 6:
					m.offer(Set{Authoritative: random.IntN(4) == 0})
				default:
					m.fail()
				}
				m.pass([]time.Duration{0, 10 * time.Millisecond, time.Second, 31 * time.Second}[random.IntN(4)])
				if !m.k.due().IsZero() && m.k.pending != nil {
					continue // still within the window
				}
				// With nothing pending, what came out is what went in.
				require.Equal(t, m.want != nil, m.gotAny)
				if m.gotAny {
					require.Equal(t, m.want, m.got)
				}
				require.Equal(t, m.failed, m.gotErr)
			}
		})
	}
}
