package balancer_test

import (
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/outcome"
)

var update = flag.Bool("update", false, "write the table of the policies into docs/choosing.md")

// compared are the policies of the table, in its order.
func compared() []contender {
	return []contender{
		{name: "`P2C` with `PeakEWMA`", policy: byDefault},
		{name: "`P2C` with `LoadReport`", policy: byReports},
		{name: "`P2C` with `InFlight`", policy: func(r rand.Source) balancer.Policy { return balancer.P2C{Cost: balancer.InFlight{}, Rand: r} }},
		{name: "`LeastRequest`", policy: func(r rand.Source) balancer.Policy { return balancer.LeastRequest{Rand: r} }},
		{name: "`WeightedRoundRobin`, `Reported`", policy: func(r rand.Source) balancer.Policy { return balancer.WeightedRoundRobin{Reported: true, Rand: r} }},
		{name: "`RoundRobin`", policy: func(r rand.Source) balancer.Policy { return balancer.RoundRobin{Rand: r} }},
		{name: "`Random`", policy: func(r rand.Source) balancer.Policy { return balancer.Random{Rand: r} }},
	}
}

// trouble is a column: a fleet that has something wrong, and what that comes to.
type trouble struct {
	name string
	unit string
	run  func(s *sim, c contender) float64
}

func troubles() []trouble {
	const ms, percent = "ms", "%"
	return []trouble{
		{"half are slower: p99", ms, func(s *sim, c contender) float64 {
			s.servers20(func(i int, _ time.Duration, took time.Duration) (time.Duration, outcome.Outcome) {
				return took * time.Duration(1+i%2), success
			})
			s.clients(c, 20, 20, 15*0.8, 45*time.Second)
			s.run()
			return percentile(s.between(30*time.Second, 45*time.Second), .99).Seconds() * 1000
		}},
		{"one stalls: calls over 1 s", percent, func(s *sim, c contender) float64 {
			s.servers20(func(i int, now, took time.Duration) (time.Duration, outcome.Outcome) {
				if i == 0 && now >= 15*time.Second && now < 30*time.Second {
					took = time.Hour
				}
				return took, success
			})
			s.clients(c, 20, 5, 20*0.6, 30*time.Second)
			s.run()
			return 100 * share(s.between(15*time.Second, 30*time.Second), func(c simCall) bool { return c.latency > time.Second })
		}},
		{"one fails at once: calls that fail", percent, func(s *sim, c contender) float64 {
			s.servers20(func(i int, now, took time.Duration) (time.Duration, outcome.Outcome) {
				if i == 0 && now >= 15*time.Second {
					return time.Millisecond, failure
				}
				return took, success
			})
			s.clients(c, 20, 5, 20*0.6, 35*time.Second)
			s.run()
			return 100 * share(s.between(15*time.Second, 35*time.Second), func(c simCall) bool { return c.failed })
		}},
		{"one joins cold: p99.9", ms, func(s *sim, c contender) float64 {
			s.servers20(func(i int, now, took time.Duration) (time.Duration, outcome.Outcome) {
				if i == 0 {
					took = time.Duration(float64(took) / min(1, 0.2+0.8*(now-15*time.Second).Seconds()/10))
				}
				return took, success
			})
			feeds := s.clients(c, 19, 5, 20*0.6, 35*time.Second)
			s.at(15*time.Second, func() {
				for _, f := range feeds {
					f.yield(s.last(20)...)
				}
			})
			s.run()
			return percentile(s.between(15*time.Second, 35*time.Second), .999).Seconds() * 1000
		}},
	}
}

// servers20 adds 20 servers of four cores, that do with a call what alter says.
func (s *sim) servers20(alter func(i int, now, took time.Duration) (time.Duration, outcome.Outcome)) {
	for i := range 20 {
		s.addServer(4, func(now time.Duration) (time.Duration, outcome.Outcome) { return alter(i, now, s.serviceLaw()) })
	}
}

// clients adds clients of the last servers, which together send what so many
// servers could do.
func (s *sim) clients(c contender, servers, clients int, load float64, end time.Duration) (feeds []*feed) {
	cfg := balancer.Config{}
	cfg.Breaker.MinCalls, cfg.Outliers.Consecutive = math.MaxInt32, -1 // what helps is to be the policy
	for range clients {
		b, f := s.client(servers, c.policy, cfg)
		feeds = append(feeds, f)
		s.poisson(fullRate(load)/float64(clients), end, func() { s.call(b, 5*time.Second) })
	}
	return feeds
}

// TestTableOfPoliciesInTheDocumentationIsTrue plays every policy through all
// troubles. With -update it writes the table.
func TestTableOfPoliciesInTheDocumentationIsTrue(t *testing.T) {
	if underRace {
		t.Skip("takes too long under the race detector, and has one goroutine")
	}
	const path, begin, end = "../docs/choosing.md", "<!-- policies -->\n", "<!-- /policies -->\n"
	measured := make(map[string][]float64)
	rows := compared()
	for _, c := range rows {
		measured[c.name] = make([]float64, len(troubles()))
	}
	t.Run("play", func(t *testing.T) {
		for _, c := range rows {
			for j, trouble := range troubles() {
				results := measured[c.name]
				t.Run(c.name+" "+trouble.name, func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) { results[j] = trouble.run(newSim(t, 1), c) })
				})
			}
		}
	})
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	before, rest, ok := strings.Cut(string(text), begin)
	require.True(t, ok, "%s has no line %s", path, begin)
	stored, after, ok := strings.Cut(rest, end)
	require.True(t, ok, "%s has no line %s", path, end)
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(before+begin+policyTable(rows, measured)+end+after), 0o644)) //nolint:gosec // a document
		return
	}
	lines := strings.Split(strings.TrimSpace(stored), "\n")
	require.Len(t, lines, 2+len(rows), "the table is old: go test ./balancer -run Table -update")
	require.Equal(t, strings.Split(policyTable(nil, nil), "\n")[0], lines[0])
	for i, c := range rows {
		cells := strings.Split(strings.Trim(lines[2+i], "| "), " | ")
		require.Equal(t, c.name, cells[0])
		for j, trouble := range troubles() {
			want, got := parseFigure(t, cells[1+j]), measured[c.name][j]
			slack := map[string]float64{"ms": 40, "%": 0.2}[trouble.unit]
			require.InDelta(t, want, got, slack+want/4, "%s, %s", c.name, trouble.name)
		}
	}
	claims(t, measured)
}

// claims are what the documentation says beside the table.
func claims(t *testing.T, measured map[string][]float64) {
	t.Helper()
	peak, reports := measured["`P2C` with `PeakEWMA`"], measured["`P2C` with `LoadReport`"]
	for name, of := range measured {
		for j, trouble := range troubles() {
			if !strings.HasSuffix(name, "`PeakEWMA`") && !strings.HasSuffix(name, "`LoadReport`") {
				require.LessOrEqual(t, max(peak[j], reports[j]), of[j]*1.1, "%s does better: %s", name, trouble.name)
			}
		}
	}
	require.Less(t, reports[0], peak[0])
	weighted, turns := measured["`WeightedRoundRobin`, `Reported`"], measured["`RoundRobin`"]
	require.Less(t, weighted[0], turns[0]/2)
	require.Less(t, weighted[2], turns[2])
	require.Greater(t, weighted[1], peak[1]*5, "the policies by turns do not see a stall")
}

func policyTable(rows []contender, measured map[string][]float64) string {
	var b strings.Builder
	b.WriteString("| policy |")
	for _, trouble := range troubles() {
		fmt.Fprintf(&b, " %s |", trouble.name)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(troubles())) + "\n")
	for _, c := range rows {
		fmt.Fprintf(&b, "| %s |", c.name)
		for j, trouble := range troubles() {
			if v := measured[c.name][j]; trouble.unit == "ms" {
				fmt.Fprintf(&b, " %.0f ms |", v)
			} else {
				fmt.Fprintf(&b, " %.2f %% |", v)
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

func parseFigure(t *testing.T, cell string) float64 {
	t.Helper()
	number, _, _ := strings.Cut(cell, " ")
	v, err := strconv.ParseFloat(number, 64)
	require.NoError(t, err)
	return v
}
