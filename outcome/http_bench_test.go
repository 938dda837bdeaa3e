package outcome_test

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/outcome"
)

func BenchmarkHTTPOfASuccess(b *testing.B) {
	req, resp := &http.Request{}, &http.Response{StatusCode: 200}
	b.Run("serial", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			outcome.HTTP(req, resp, nil)
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				outcome.HTTP(req, resp, nil)
			}
		})
	})
}

func TestHTTPAllocatesNothingForASuccess(t *testing.T) {
	req, resp := &http.Request{}, &http.Response{StatusCode: 200}
	require.Zero(t, testing.AllocsPerRun(100, func() { outcome.HTTP(req, resp, nil) }))
}
