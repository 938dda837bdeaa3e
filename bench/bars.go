package main

import (
	"fmt"
	"slices"
	"strings"
)

// bar is what we want of ourselves: in one table, our figure is at most factor
// times the peer's plus slack.
type bar struct {
	table  string // with its mode
	ours   string // the row that is ours
	peer   string // the row to compare with; empty if there is none
	less   string // a row whose figure is taken off ours first; may be empty
	lessOf string // and one that is taken off the peer's
	allocs bool   // it is about allocations, not about nanoseconds
	factor float64
	slack  float64
	report bool // it is not a bar yet, only a ratio of interest
}

// barResult is what came of a bar.
type barResult struct {
	Name    string `json:"name"`
	Want    string `json:"want"`
	Have    string `json:"have"`
	Verdict string `json:"verdict"` // pass, miss, or empty if there was nothing to miss
}

// yardstick is what took how long, in nanoseconds, where those bars were set that name
// a time. Machines differ by three, and so do a machine's hours: a time is a share of
// what the same thing takes in the same run.
type yardstick struct {
	bare     float64 // a call of http.Client over the transport that answers at once
	failsafe float64 // what failsafe's retry adds to it
}

func yardsticks() map[string]yardstick {
	return map[string]yardstick{"/serial": {bare: 432, failsafe: 740}, "/parallel": {bare: 387, failsafe: 502}}
}

// bars lists all of them.
func bars() []bar {
	var all []bar
	for _, mode := range []string{"/serial", "/parallel"} {
		set := yardsticks()[mode]
		closed := "Breaker/closed-success" + mode
		all = append(all,
			bar{table: closed, ours: ours, peer: "gobreaker-rolling", factor: 0.6},
			bar{table: closed, ours: ours, peer: "failsafe-rate", factor: 1},
			bar{table: closed, ours: ours, allocs: true},
		)
		for _, n := range nodeCounts() {
			factor := 2.0
			if n < 10 {
				factor = 3
			}
			pick := fmt.Sprintf("Pick/n=%d%s", n, mode)
			all = append(all,
				bar{table: pick, ours: ours, peer: "httplb-poweroftwo", factor: factor},
				bar{table: pick, ours: ours, allocs: true},
				bar{table: pick, ours: "backstay-ownclock", peer: "go-zero-p2c", factor: 1},
			)
			if n <= mostCompared {
				all = append(all,
					bar{table: pick, ours: "backstay-bridge", peer: "grpc-least_request", factor: 1},
					bar{table: pick, ours: "backstay-bridge", allocs: true},
				)
			}
		}
		factor := 1.3
		if mode == "/parallel" {
			factor = 1
		}
		hit := "Cache/hit" + mode
		all = append(all,
			bar{table: hit, ours: ours, peer: "golang-lru", factor: factor},
			bar{table: hit, ours: ours, allocs: true},
			bar{table: "Cache/get-or-load-hit" + mode, ours: ours, allocs: true},
		)
		first, layer := "Retry/first-try"+mode, "RetryHTTP/first-try"+mode
		all = append(all,
			bar{table: first, ours: "backstay-no-budget", peer: "backoff-v4", factor: 1},
			bar{table: first, ours: "backstay-no-budget", allocs: true},
			bar{table: layer, ours: "backstay-no-timeout", less: "none", peer: "failsafe", lessOf: "none", factor: 150 / set.failsafe},
			bar{table: layer, ours: "backstay-no-timeout", peer: "none", factor: 1, slack: 150, report: true},
			bar{table: layer, ours: "backstay-no-timeout", peer: "none", allocs: true, factor: 1, slack: 2},
			bar{table: layer, ours: "backstay-timeouts", less: "none", peer: "failsafe", lessOf: "none", factor: 500 / set.failsafe},
			bar{table: layer, ours: "backstay-timeouts", peer: "none", factor: 1, slack: 500, report: true},
			bar{table: layer, ours: "backstay-timeouts", peer: "none", allocs: true, factor: 1, slack: 7},
			// What a hedge adds to a call that does not need it.
			bar{table: "Hedge/armed" + mode, ours: ours, less: "backstay-retry", peer: "failsafe", lessOf: "none", factor: 0.2},
			bar{table: "Hedge/armed" + mode, ours: ours, peer: "failsafe-retry+timeout", report: true},
		)
		nop := "HTTPNop/get" + mode
		for _, client := range []string{ours, "backstay-1-endpoint"} {
			all = append(all,
				bar{table: nop, ours: client, peer: "bare", factor: 1 + 600/set.bare},
				bar{table: nop, ours: client, peer: "bare", factor: 1, slack: 600, report: true},
				bar{table: nop, ours: client, peer: "bare", allocs: true, factor: 1, slack: 8},
			)
		}
	}
	for _, c := range grpcContests() {
		for _, m := range c.modes {
			table := c.name + "/" + m.name
			all = append(all,
				bar{table: table, ours: ours, peer: "round_robin", factor: 1.05},
				bar{table: table, ours: ours, peer: "round_robin", allocs: true, factor: 1, slack: 10},
				bar{table: table, ours: ours, peer: "round_robin+failsafegrpc", factor: 1},
			)
		}
	}
	return append(all, loopbackBars()...)
}

// loopbackBars hold one server against net/http alone, and several against the
// balancer next to ours.
func loopbackBars() (all []bar) {
	for _, c := range loopbackContests() {
		several := strings.HasSuffix(c.name, "servers=4")
		for _, m := range c.modes {
			table := c.name + "/" + m.name
			all = append(all, bar{table: table, ours: ours, peer: "bare", factor: 1.05, report: several})
			if !several {
				all = append(all, bar{table: table, ours: ours, peer: "bare", allocs: true, factor: 1, slack: 8})
			} else if m.goroutines > 0 {
				all = append(all, bar{table: table, ours: ours, peer: "httplb", factor: 1})
				if strings.Contains(c.name, "http1") {
					all = append(all, bar{table: table, ours: ours, peer: "httplb-pooled", factor: 1})
				}
			}
		}
	}
	return all
}

// checkBars checks the bars whose tables there are, and returns how many were
// missed.
func checkBars(bars []bar, tables []table) (results []barResult, missed int) {
	for _, b := range bars {
		i := slices.IndexFunc(tables, func(t table) bool { return t.Name == b.table })
		if i < 0 {
			continue
		}
		result := b.check(tables[i])
		results = append(results, result)
		if result.Verdict == miss {
			missed++
		}
	}
	return results, missed
}

const (
	pass = "pass"
	miss = "MISS"
)

// check looks at one table.
func (b bar) check(t table) barResult {
	result := barResult{Name: b.table + ": " + b.ours, Want: b.want(), Have: "no such peer", Verdict: miss}
	us, peer := t.row(b.ours), &row{}
	if b.peer != "" {
		peer = t.row(b.peer)
	}
	if us == nil || peer == nil {
		return result
	}
	have, theirs, unit := us.Median, peer.Median, "ns"
	if b.allocs {
		have, theirs, unit = float64(us.Allocs), float64(peer.Allocs), "allocs"
	}
	if base := t.row(b.less); base != nil {
		have -= base.Median
	}
	if base := t.row(b.lessOf); base != nil {
		theirs -= base.Median
	}
	switch {
	case b.peer == "":
		result.Have = fmt.Sprintf("%g %s", have, unit)
	case b.slack > 0:
		result.Have = fmt.Sprintf("%+.0f %s", have-theirs, unit)
	default:
		result.Have = fmt.Sprintf("%.2f ×", have/theirs)
	}
	switch {
	case b.report:
		result.Verdict = ""
	case have <= b.factor*theirs+b.slack:
		result.Verdict = pass
	}
	return result
}

// want says what the bar asks for.
func (b bar) want() string {
	unit := "ns"
	if b.allocs {
		unit = "allocs"
	}
	switch {
	case b.report:
		return b.peer
	case b.peer == "":
		return fmt.Sprintf("≤ %g %s", b.slack, unit)
	case b.slack > 0:
		return fmt.Sprintf("≤ %s + %g %s", b.peer, b.slack, unit)
	}
	return strings.TrimSpace(fmt.Sprintf("≤ %.3g × %s", b.factor, b.peer))
}
