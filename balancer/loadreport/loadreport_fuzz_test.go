package loadreport_test

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/balancer/loadreport"
)

func sane(t *testing.T, r loadreport.Report, ok bool) {
	t.Helper()
	for _, v := range []float64{r.ApplicationUtilization, r.CPUUtilization, r.MemUtilization, r.RPS, r.EPS, r.InFlight} {
		require.True(t, v >= 0 && v <= 1e9 && !math.IsNaN(v), "%+v", r)
	}
	require.True(t, r.ServiceTime >= 0 && r.ServiceTime <= time.Hour && r.MemUtilization <= 1, "%+v", r)
	require.Nil(t, r.Named)
	if !ok {
		require.Zero(t, r)
		return
	}
	// What is written is read again, but for digits that nobody needs.
	again, ok := loadreport.Parse(r.String())
	if ok {
		require.InDelta(t, r.RPS, again.RPS, 1e-6+r.RPS*1e-9)
		require.InDelta(t, r.InFlight, again.InFlight, 1e-6)
		require.InDelta(t, r.ServiceTime.Seconds(), again.ServiceTime.Seconds(), 1e-6)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		fullText, "TEXT eps:1", `JSON {"eps":1,"named_metrics":{"rif":"3"}}`, "BIN CQAAAAAAANA/", "TEXT mem_utilization=1e-320,eps=0x1p-2",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		r, ok := loadreport.Parse(value)
		sane(t, r, ok)
		n := 0
		for name, v := range loadreport.Metrics(value) {
			n++
			require.NotEmpty(t, name)
			require.True(t, v >= 0 && !math.IsInf(v, 0))
		}
		require.LessOrEqual(t, n, 64)
	})
}

func FuzzParseBinary(f *testing.F) {
	f.Add(binaryOf)
	data, _ := full.AppendBinary(nil)
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		r, ok := loadreport.ParseBinary(data)
		sane(t, r, ok)
	})
}
