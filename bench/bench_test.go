package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"io"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/zeromicro/go-zero/core/logx"
	"google.golang.org/grpc/balancer"
)

// TestEveryPeerDoesItsJob has each peer of each case do a few calls, alone and
// from several goroutines, which is not a measurement but proves that there is
// something to measure.
func TestEveryPeerDoesItsJob(t *testing.T) {
	logx.Disable()
	for _, c := range everything() {
		for _, p := range c.peers {
			t.Run(c.name+"/"+p.name, func(t *testing.T) {
				var s stage
				defer s.close()
				j, err := p.setup(&s)
				require.NoError(t, err)
				for _, m := range c.modes {
					require.NoError(t, drive(j, m.callers(), 4*m.callers(), func() {}), m.name)
				}
			})
		}
	}
}

func TestDriveMakesExactlyTheCallsAskedFor(t *testing.T) {
	for _, goroutines := range []int{1, 2, 64} {
		for _, n := range []int{1, 2, 63, 1000, 300_000} {
			var calls atomic.Int64
			count := each(func() error { calls.Add(1); return nil })
			begin := func() { require.EqualValues(t, warmCalls*goroutines, calls.Swap(0), "to warm up") }
			require.NoError(t, drive(count, goroutines, n, begin))
			require.EqualValues(t, n, calls.Load(), "%d goroutines", goroutines)
		}
	}
}

func TestDriveReportsAFailedCall(t *testing.T) {
	for _, goroutines := range []int{1, 4} {
		require.ErrorIs(t, drive(each(fail), goroutines, 100, func() {}), errCall)
	}
}

func TestNamesAreUniqueAndBarsAreAboutSomething(t *testing.T) {
	rows := make(map[string]bool)
	for _, c := range everything() {
		for _, m := range c.modes {
			for _, p := range c.peers {
				name := c.name + "/" + m.name + ": " + p.name
				require.False(t, rows[name], name)
				rows[name] = true
			}
		}
	}
	for _, b := range bars() {
		require.Contains(t, rows, b.table+": "+b.ours)
		if b.peer != "" {
			require.Contains(t, rows, b.table+": "+b.peer)
		}
	}
}

func TestBarsTellPassFromMiss(t *testing.T) {
	tables := []table{{Name: "x/serial", Rows: []row{
		{Peer: ours, Median: 120, Allocs: 3},
		{Peer: "other", Median: 100, Allocs: 1},
	}}}
	for _, c := range []struct {
		name    string
		bar     bar
		verdict string
		have    string
	}{
		{"ratio passes", bar{peer: "other", factor: 1.2}, pass, "1.20 ×"},
		{"ratio misses", bar{peer: "other", factor: 1.1}, miss, "1.20 ×"},
		{"difference passes", bar{peer: "other", factor: 1, slack: 20}, pass, "+20 ns"},
		{"difference misses", bar{peer: "other", factor: 1, slack: 19}, miss, "+20 ns"},
		{"allocations pass", bar{allocs: true, slack: 3}, pass, "3 allocs"},
		{"allocations miss", bar{allocs: true}, miss, "3 allocs"},
		{"difference of allocations misses", bar{peer: "other", allocs: true, factor: 1, slack: 1}, miss, "+2 allocs"},
		{"report does neither", bar{peer: "other", report: true}, "", "1.20 ×"},
		{"no such peer", bar{peer: "another", factor: 9}, miss, "no such peer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.bar.table, c.bar.ours = "x/serial", ours
			results, missed := checkBars([]bar{c.bar, {table: "not measured", ours: ours}}, tables)
			require.Len(t, results, 1)
			require.Equal(t, c.verdict, results[0].Verdict)
			require.Equal(t, c.have, results[0].Have)
			require.Equal(t, c.verdict == miss, missed == 1)
		})
	}
}

func TestMedian(t *testing.T) {
	require.EqualValues(t, 2, median([]int64{9, 1, 2}))
	require.InDelta(t, 2.5, median([]float64{4, 1, 9, 1}), 0)
}

func TestWeightsOfWeightedRoundRobinAreInUse(t *testing.T) {
	const n = 7
	var s stage
	defer s.close()
	p, err := weightedPicker(&s, n)
	require.NoError(t, err)
	picks := make(map[balancer.SubConn]int)
	for range 1000 * n {
		picked, err := p.Pick(balancer.PickInfo{})
		require.NoError(t, err)
		picks[picked.SubConn]++
	}
	require.Len(t, picks, n)
	least, most := 1000*n, 0
	for _, times := range picks {
		least, most = min(least, times), max(most, times)
	}
	require.InDelta(t, 1.6, float64(most)/float64(least), 0.05, "the reported rates are 100 to 160")
}

func TestReportNamesPeersAndBars(t *testing.T) {
	res := report{Machine: "a machine", Modules: []string{"example.org/other v1"}, Samples: 2, SampleTime: "1ms"}
	res.Tables = []table{{Name: "x/serial", Rows: []row{
		{Peer: "other", Median: 7.123, Ratio: 0.5, Samples: []float64{7, 7.246}},
		{Peer: ours, Median: 14.246, Allocs: 1, Ratio: 1, Samples: []float64{14, 14.492}},
	}}}
	res.Bars, _ = checkBars([]bar{{table: "x/serial", ours: ours, peer: "other", factor: 1}}, res.Tables)
	for _, format := range []string{"table", "markdown", "json"} {
		t.Run(format, func(t *testing.T) {
			var out bytes.Buffer
			p, err := printerFor(format, &out)
			require.NoError(t, err)
			p.head(&res)
			p.table(res.Tables[0])
			require.NoError(t, p.end(&res))
			for _, want := range []string{"a machine", "example.org/other v1", "x/serial", "other", ours, "MISS", "2.00 ×"} {
				require.Contains(t, out.String(), want)
			}
			if format == "json" {
				var back report
				require.NoError(t, json.Unmarshal(out.Bytes(), &back))
				require.Equal(t, res, back)
			} else {
				require.Contains(t, out.String(), "7.00–7.25")
			}
		})
	}
	_, err := printerFor("xml", io.Discard)
	require.ErrorContains(t, err, "xml")
}

func TestRunMeasuresTheCasesThatMatch(t *testing.T) {
	before := flag.Lookup("test.benchtime").Value.String()
	t.Cleanup(func() { require.NoError(t, flag.Set("test.benchtime", before)) })
	var out bytes.Buffer
	const samples = 3
	require.NoError(t, run([]string{
		"-run", "Limit/.*/serial", "-samples", strconv.Itoa(samples), "-time", "1ms", "-format", "json",
	}, &out))
	var res report
	require.NoError(t, json.Unmarshal(out.Bytes(), &res))
	require.Len(t, res.Tables, 2)
	for _, table := range res.Tables {
		require.True(t, strings.HasSuffix(table.Name, "/serial"), table.Name)
		require.NotNil(t, table.row(ours))
		for i, r := range table.Rows {
			require.Len(t, r.Samples, samples, r.Peer)
			require.Positive(t, r.Median)
			require.InDelta(t, r.Median/table.row(ours).Median, r.Ratio, 1e-9, r.Peer)
			require.True(t, i == 0 || r.Median >= table.Rows[i-1].Median, "the rows stand by their medians")
		}
	}
}

func TestRunRefusesWhatWouldTellNothing(t *testing.T) {
	for _, args := range [][]string{
		{"-run", "no such case"}, {"-run", "("}, {"-samples", "0"}, {"-time", "0s"}, {"-format", "xml"},
	} {
		require.Error(t, run(args, io.Discard), "%q", args)
	}
}

func TestRunFailsIfThereIsNoBarToCheck(t *testing.T) {
	before := flag.Lookup("test.benchtime").Value.String()
	t.Cleanup(func() { require.NoError(t, flag.Set("test.benchtime", before)) })
	err := run([]string{"-run", "Limit/rate-allow/serial", "-samples", "1", "-time", "1ms", "-bars"}, io.Discard)
	require.ErrorContains(t, err, "no bar")
}

func TestVersionsAreThoseBuiltIn(t *testing.T) {
	for _, m := range versions(everything()) {
		require.Len(t, strings.Fields(m), 2, m)
	}
}

// The standard benchmarks, for go test -bench and benchstat, are the same jobs.

func BenchmarkBreaker(b *testing.B)      { benchmark(b, breakerContests()) }
func BenchmarkRetry(b *testing.B)        { benchmark(b, retryContests()) }
func BenchmarkRetryHTTP(b *testing.B)    { benchmark(b, retryLayerContests()) }
func BenchmarkHedge(b *testing.B)        { benchmark(b, hedgeContests()) }
func BenchmarkLimit(b *testing.B)        { benchmark(b, limitContests()) }
func BenchmarkPick(b *testing.B)         { benchmark(b, pickContests()) }
func BenchmarkCache(b *testing.B)        { benchmark(b, cacheContests()) }
func BenchmarkHTTPNop(b *testing.B)      { benchmark(b, nopContests()) }
func BenchmarkHTTPLoopback(b *testing.B) { benchmark(b, loopbackContests()) }
func BenchmarkGRPCLoopback(b *testing.B) { benchmark(b, grpcContests()) }

func benchmark(b *testing.B, contests []contest) {
	logx.Disable()
	for _, c := range contests {
		_, name, _ := strings.Cut(c.name, "/")
		for _, p := range c.peers {
			b.Run(name+"/peer="+p.name, func(b *testing.B) {
				var s stage
				defer s.close()
				j, err := p.setup(&s)
				require.NoError(b, err)
				for _, m := range c.modes {
					b.Run("mode="+m.name, func(b *testing.B) {
						b.ReportAllocs()
						require.NoError(b, drive(j, m.callers(), b.N, b.ResetTimer))
					})
				}
			})
		}
	}
}
