package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"
)

// table is what came of one case in one mode.
type table struct {
	Name string `json:"name"`
	Rows []row  `json:"rows"` // by their median
}

// row is what came of one peer. Times are in nanoseconds per call.
type row struct {
	Peer    string    `json:"peer"`
	Median  float64   `json:"median"`
	Bytes   int64     `json:"bytes"`
	Allocs  int64     `json:"allocs"`
	Ratio   float64   `json:"ratio,omitempty"` // of the median to ours; 0 if we take no part
	Samples []float64 `json:"samples"`         // in the order in which they were taken
}

func (r row) least() float64 { return slices.Min(r.Samples) }
func (r row) most() float64  { return slices.Max(r.Samples) }

// row returns the row of a peer, or nil.
func (t table) row(peer string) *row {
	if i := slices.IndexFunc(t.Rows, func(r row) bool { return r.Peer == peer }); i >= 0 {
		return &t.Rows[i]
	}
	return nil
}

// measurer takes samples.
type measurer struct {
	samples  int
	duration time.Duration // of each
	order    *rand.Rand
}

func newMeasurer(samples int, duration time.Duration) *measurer {
	// The seed is fixed, so that two runs differ in nothing that can be helped.
	return &measurer{samples: samples, duration: duration, order: rand.New(rand.NewPCG(1, 2))}
}

// A crowd has to settle: in a sample in which each of its callers makes a dozen calls
// only, half of what is measured is how they begin and end. So its samples take longer,
// and there are fewer.
const (
	crowdTime    = 7  // times as long
	crowdShare   = 3  // of so many samples one
	crowdSamples = 10 // at least, if there are so many
)

// plan returns how many samples are taken in a mode, and how long each is.
func (m *measurer) plan(callers int) (samples int, duration time.Duration) {
	if callers <= runtime.GOMAXPROCS(0) {
		return m.samples, m.duration
	}
	return max(m.samples/crowdShare, min(m.samples, crowdSamples)), crowdTime * m.duration
}

// measure measures a case in each of its modes.
func (m *measurer) measure(c contest) ([]table, error) {
	var set stage
	defer set.close()
	jobs := make([]job, len(c.peers))
	for _, i := range m.order.Perm(len(c.peers)) { // it makes a difference of a hundredth who is first
		var err error
		if jobs[i], err = c.peers[i].setup(&set); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", c.name, c.peers[i].name, err)
		}
	}
	var tables []table
	for _, mode := range c.modes {
		rows, err := m.rounds(c.peers, jobs, mode.callers())
		if err != nil {
			return nil, fmt.Errorf("%s/%s: %w", c.name, mode.name, err)
		}
		tables = append(tables, table{Name: c.name + "/" + mode.name, Rows: rows})
	}
	return tables, nil
}

// rounds takes one sample of each peer per round, in an order that changes from
// round to round: nobody always comes after the same one.
func (m *measurer) rounds(peers []peer, jobs []job, callers int) ([]row, error) {
	samples, duration := m.plan(callers)
	// testing.Benchmark takes its time from a flag of the testing package.
	if err := flag.Set("test.benchtime", duration.String()); err != nil {
		return nil, err
	}
	rows := make([]row, len(peers))
	bytes, allocs := make([][]int64, len(peers)), make([][]int64, len(peers))
	for range samples {
		for _, i := range m.order.Perm(len(peers)) {
			s, err := sample(jobs[i], callers)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", peers[i].name, err)
			}
			rows[i].Samples = append(rows[i].Samples, float64(s.T.Nanoseconds())/float64(s.N))
			bytes[i] = append(bytes[i], s.AllocedBytesPerOp())
			allocs[i] = append(allocs[i], s.AllocsPerOp())
		}
	}
	for i := range rows {
		rows[i].Peer = peers[i].name
		rows[i].Median, rows[i].Bytes, rows[i].Allocs = median(rows[i].Samples), median(bytes[i]), median(allocs[i])
	}
	slices.SortStableFunc(rows, func(a, b row) int {
		switch {
		case a.Median < b.Median:
			return -1
		case a.Median > b.Median:
			return 1
		}
		return 0
	})
	if us := (table{Rows: rows}).row(ours); us != nil {
		base := us.Median
		for i := range rows {
			rows[i].Ratio = rows[i].Median / base
		}
	}
	return rows, nil
}

// sample takes one sample. testing.Benchmark collects the garbage before.
func sample(j job, callers int) (testing.BenchmarkResult, error) {
	var err error
	result := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		if err = drive(j, callers, b.N, b.ResetTimer); err != nil {
			b.FailNow()
		}
	})
	return result, err
}

// median returns the middle of values, which must not be empty.
func median[T int64 | float64](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	half := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[half]
	}
	return (sorted[half-1] + sorted[half]) / 2
}
