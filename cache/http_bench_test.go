package cache_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/backstay/backstay/cache"
)

func BenchmarkHTTPHit(b *testing.B) {
	for _, size := range []int{1 << 10, 1 << 16} {
		origin := answers(func() *http.Response {
			return text(strings.Repeat("x", size), "Content-Type", "application/json",
				"Date", "Sat, 01 Jan 2000 00:00:00 GMT", "Etag", `"1"`, "Server", "x")
		})
		rt := newHTTP(b, &cache.HTTPConfig{TTL: -1}).Layer(origin)
		get(b, rt, u)
		hit := func(req *http.Request) {
			resp, _ := rt.RoundTrip(req)
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
		b.Run(fmt.Sprintf("%d/serial", size), func(b *testing.B) {
			b.ReportAllocs()
			req := newRequest(b, http.MethodGet, u)
			for b.Loop() {
				hit(req)
			}
		})
		b.Run(fmt.Sprintf("%d/parallel", size), func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				req := newRequest(b, http.MethodGet, u)
				for pb.Next() {
					hit(req)
				}
			})
		})
	}
}

// BenchmarkHTTPMiss is the price of storing while streaming.
func BenchmarkHTTPMiss(b *testing.B) {
	long := strings.Repeat("x", 1<<16)
	for name, fields := range map[string][]string{"stored": nil, "not stored": {"Cache-Control", "no-store"}} {
		b.Run(name, func(b *testing.B) {
			rt := newHTTP(b, nil).Layer(answers(func() *http.Response { return text(long, fields...) }))
			req := newRequest(b, http.MethodGet, u)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				req.URL.RawQuery = fmt.Sprint(i)
				resp, _ := rt.RoundTrip(req)
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
		})
	}
}
