package main

import (
	"fmt"
	"strings"
	"time"
)

func printIntroduction() {
	fmt.Printf(`Four servers on loopback answer in 2 to 8 ms. %d callers use Backstay with its defaults, and, at
the same time, as many a plain http.Client that takes the servers in turn. All calls are GETs and
PUTs, which may be repeated. Under the servers' names stands how the attempts were shared out, from
the moment on at which something changes.
`, callers)
}

// printPhase prints what the callers saw, and below it what Backstay did about it.
func printPhase(number int, title string, servers []string, results []result) {
	fmt.Printf("\n%d. %s\n\n", number, title)
	fmt.Printf("   %-9s %7s %9s %8s %8s %8s   ", "", "calls", "failures", "retries", "p50", "p99")
	for _, name := range servers {
		fmt.Printf(" %6s", name)
	}
	fmt.Println()
	for _, r := range results {
		fmt.Printf("   %-9s %7d %9d %8d %8s %8s   ", r.name, r.calls, r.failures, r.retries,
			r.percentile(50), r.percentile(99))
		for _, name := range servers {
			fmt.Printf(" %5.1f%%", r.share(name))
		}
		fmt.Println()
	}
	changes := "none"
	if len(results[0].changes) > 0 {
		changes = strings.Join(results[0].changes, ", ")
	}
	fmt.Printf("   changes of nodes: %s\n", changes)
}

func printEnd(total []result, lost int) {
	fmt.Println()
	for _, r := range total {
		fmt.Printf("%s: %d of %d calls failed.\n", r.name, r.failures, r.calls)
	}
	if lost > 0 {
		fmt.Printf("Backstay has lost %d calls that could have been repeated.\n", lost)
	}
}

// percentile returns the time within which p percent of the calls were over.
func (r *result) percentile(p int) string {
	if len(r.times) == 0 {
		return "none"
	}
	d := r.times[(len(r.times)-1)*p/100]
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

// share returns the percentage of the attempts that went to a server.
func (r *result) share(server string) float64 {
	all := 0
	for _, n := range r.sent {
		all += n
	}
	return 100 * float64(r.sent[server]) / float64(max(all, 1))
}
