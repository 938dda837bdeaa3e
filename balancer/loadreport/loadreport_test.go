package loadreport_test

import (
	"encoding/base64"
	"maps"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer/loadreport"
)

var full = loadreport.Report{
	ApplicationUtilization: 0.5, CPUUtilization: 0.25, MemUtilization: 0.75, RPS: 1000, EPS: 1.5,
	InFlight: 3, ServiceTime: 12 * time.Millisecond,
}

const fullText = "TEXT application_utilization=0.5,cpu_utilization=0.25,mem_utilization=0.75,rps_fractional=1000,eps=1.5," +
	"named_metrics.rif=3,named_metrics.service_time=0.012"

// binaryOf is the message of some fields as protobuf's own encoder writes it:
// rps (a varint) 7, cpu_utilization 0.25, a request cost, named_metrics {"rif": 3}.
var binaryOf = []byte("\x18\x07" + "\x09\x00\x00\x00\x00\x00\x00\xd0\x3f" +
	"\x22\x0c\x0a\x01a\x11\x00\x00\x00\x00\x00\x00\xf0\x3f" +
	"\x42\x0e\x0a\x03rif\x11\x00\x00\x00\x00\x00\x00\x08\x40")

func TestReportIsWrittenAsText(t *testing.T) {
	require.Equal(t, fullText, full.String())
	require.Equal(t, "TEXT ", loadreport.Report{}.String())
	require.Equal(t, "TEXT named_metrics.rif=0,named_metrics.service_time=1", loadreport.Report{ServiceTime: time.Second}.String(),
		"an idle server says so")
	require.Equal(t, "TEXT named_metrics.a=0,named_metrics.b/c-d=2000000", loadreport.Report{Named: map[string]float64{
		"b/c-d": 2e6, "a": 0, "": 1, "x,y": 1, "z\r\nSet-Cookie": 1, "rif": 9, "nan": math.NaN(), "less": -1, "inf": math.Inf(1),
	}}.String())
	many := loadreport.Report{Named: map[string]float64{}}
	for i := range 1000 {
		many.Named[strings.Repeat("n", i%60)+"."+string(rune('a'+i%26))] = 1
	}
	require.Less(t, len(many.String()), 4096)
}

func TestReportIsReadInAllForms(t *testing.T) {
	binary, err := full.AppendBinary(nil)
	require.NoError(t, err)
	for name, value := range map[string]string{
		"text":           fullText,
		"text, spaced":   "TEXT  application_utilization: 0.5 , cpu_utilization:0.25, mem_utilization=0.75,rps_fractional=1e3, eps=1.5,named_metrics.rif=3,named_metrics.service_time=0.012,",
		"text, unknowns": fullText + ",named_metrics.other=7,utilization.x=0.5,nothing",
		"JSON":           `JSON {"application_utilization":0.5,"cpu_utilization":0.25,"mem_utilization":0.75,"rps_fractional":1000,"eps":1.5,"named_metrics":{"rif":3,"service_time":0.012},"rps":"12","request_cost":{"a":1}}`,
		"JSON, camels":   `JSON {"applicationUtilization":0.5,"cpuUtilization":"0.25","memUtilization":0.75,"rpsFractional":1000,"eps":1.5,"namedMetrics":{"rif":3,"service_time":0.012}}`,
		"binary":         "BIN " + base64.StdEncoding.EncodeToString(binary),
	} {
		got, ok := loadreport.Parse(value)
		require.True(t, ok, name)
		require.Equal(t, full, got, name)
	}
}

func TestBinaryReportIsReadFromProtobuf(t *testing.T) {
	want := loadreport.Report{CPUUtilization: 0.25, InFlight: 3}
	got, ok := loadreport.ParseBinary(binaryOf)
	require.True(t, ok)
	require.Equal(t, want, got)
	for i := range binaryOf { // a message that breaks off
		_, _ = loadreport.ParseBinary(binaryOf[:i])
	}
	back, err := full.AppendBinary(nil)
	require.NoError(t, err)
	got, ok = loadreport.ParseBinary(back)
	require.True(t, ok)
	require.Equal(t, full, got)
}

func TestNonsenseIsLeftOut(t *testing.T) {
	for _, value := range []string{
		"", "TEXT", "TEXT ", "text cpu_utilization=0.5", "cpu_utilization=0.5", "TEXT cpu_utilization", "TEXT =1", "TEXT cpu_utilization=",
		"TEXT cpu_utilization=-0.5", "TEXT cpu_utilization=NaN", "TEXT cpu_utilization=Inf", "TEXT cpu_utilization=+Inf", "TEXT cpu_utilization=1e999",
		"TEXT cpu_utilization=1001", "TEXT mem_utilization=1.1", "TEXT rps_fractional=1e10", "TEXT named_metrics.service_time=3601",
		"TEXT named_metrics.rif=1e7", "TEXT cpu_utilization=0x1p-2e", "TEXT rif=3", "TEXT cpu_utilization=0." + strings.Repeat("1", 40),
		"TEXT cpu_utilization=0.5" + strings.Repeat(",", 5000), "TEXT " + strings.Repeat("a=1,", 64) + "cpu_utilization=0.5",
		"JSON", "JSON null", "JSON 3", "JSON {", `JSON {"cpu_utilization":-1}`, `JSON {"cpu_utilization":"NaN"}`, `JSON {"cpu_utilization":[1]}`,
		`JSON {"named_metrics":3}`, `JSON {"named_metrics":null,"eps":null}`, `JSON {"rps_fractional":1.7e308,"rpsFractional":1.7e308}`,
		"BIN", "BIN !", "BIN " + base64.StdEncoding.EncodeToString([]byte("\x09\x00")), "BIN " + base64.StdEncoding.EncodeToString([]byte("\x09\x00\x00\x00\x00\x00\x00\xf8\x7f")),
	} {
		got, ok := loadreport.Parse(value)
		require.False(t, ok, "%q", value)
		require.Zero(t, got, "%q", value)
	}
	got, ok := loadreport.Parse("TEXT cpu_utilization=-1,eps=x,,=,mem_utilization=0.5,rps_fractional=1,rps_fractional=2")
	require.True(t, ok)
	require.Equal(t, loadreport.Report{MemUtilization: 0.5, RPS: 2}, got)
}

func TestMetricsAreAllThatIsSaid(t *testing.T) {
	for _, value := range []string{
		"TEXT cpu_utilization=0.5,named_metrics.queue=7,named_metrics.bad=-1",
		`JSON {"cpu_utilization":0.5,"named_metrics":{"queue":7,"":1}}`,
	} {
		got := maps.Collect(loadreport.Metrics(value))
		require.Equal(t, map[string]float64{"cpu_utilization": 0.5, "named_metrics.queue": 7}, got)
		for range loadreport.Metrics(value) {
			break
		}
	}
	n := 0
	for range loadreport.Metrics("TEXT " + strings.Repeat("a=1,", 500)) {
		n++
	}
	require.Equal(t, 64, n, "there is a limit")
}

func TestReadingTextAllocatesNothing(t *testing.T) {
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if _, ok := loadreport.Parse(fullText); !ok {
			t.Fatal("not read")
		}
	}))
}

func TestUtilizationIsTheApplicationsIfItSaysSo(t *testing.T) {
	require.InDelta(t, 0.5, full.Utilization(), 0)
	require.InDelta(t, 0.25, (&loadreport.Report{CPUUtilization: 0.25}).Utilization(), 0)
}

// play has a server answer rate requests a second for the time, each of which takes
// so long, and returns its report.
func play(s *loadreport.Server, rate int, length, took time.Duration, failed func(i int) bool) loadreport.Report {
	var last loadreport.Report
	done := make(chan struct{})
	n := int(length.Seconds() * float64(rate))
	for i := range n {
		r := s.Begin(time.Time{})
		go func() {
			time.Sleep(took)
			report := r.Answered(time.Time{}, failed(i))
			r.Done(time.Time{})
			if i == n-1 {
				last = report
				close(done)
			}
		}()
		time.Sleep(time.Second / time.Duration(rate))
	}
	<-done
	return last
}

func TestServerMeasuresItsLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &loadreport.Server{Capacity: 40}
		require.Equal(t, loadreport.Report{}, s.Report())
		r := play(s, 200, 30*time.Second, 102500*time.Microsecond, func(i int) bool { return i%10 == 0 })
		require.InDelta(t, 200, r.RPS, 4)
		require.InDelta(t, 20, r.EPS, 1)
		require.InDelta(t, 0.1025, r.ServiceTime.Seconds(), 0.001)
		require.InDelta(t, 0.5, r.ApplicationUtilization, 0.02, "20 of 40")
		time.Sleep(time.Second)
		require.Zero(t, s.Report().InFlight)
		a, b := s.Begin(time.Time{}), s.Begin(time.Time{})
		require.InDelta(t, 2, s.Report().InFlight, 0)
		require.InDelta(t, 1, a.Answered(time.Time{}, false).InFlight, 0, "besides itself")
		a.Done(time.Time{})
		a.Done(time.Time{})
		b.Skip()
		b.Done(time.Time{})
		require.Zero(t, s.Report().InFlight)

		r = play(s, 20, 60*time.Second, time.Millisecond, func(int) bool { return false })
		require.InDelta(t, 20, r.RPS, 1, "it forgets")
		require.InDelta(t, 0, r.EPS, 0.1)
		require.InDelta(t, 0.001, r.ServiceTime.Seconds(), 0.0005)
	})
}

func TestUtilizationIsOneWhileRequestsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &loadreport.Server{Capacity: 4}
		require.InDelta(t, 1, play(s, 100, 10*time.Second, 200*time.Millisecond, func(int) bool { return false }).ApplicationUtilization, 0.02)
		require.Zero(t, (&loadreport.Server{Capacity: -1}).Report().ApplicationUtilization)
	})
}

func TestFailuresHasteIsNoServiceTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := new(loadreport.Server)
		r := play(s, 100, 10*time.Second, time.Millisecond, func(int) bool { return true })
		require.Zero(t, r.ServiceTime)
		require.InDelta(t, r.RPS, r.EPS, 0.01)
		crashed := s.Begin(time.Time{})
		crashed.Done(time.Time{}) // never answered
		require.Zero(t, s.Report().ServiceTime)
	})
}

func TestFillChangesTheReport(t *testing.T) {
	s := &loadreport.Server{Fill: func(r *loadreport.Report) { r.CPUUtilization, r.Named = 0.5, map[string]float64{"queue": 7} }}
	require.Equal(t, "TEXT cpu_utilization=0.5,named_metrics.queue=7", s.Report().String())
}
