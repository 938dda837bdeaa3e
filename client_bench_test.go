package backstay_test

import (
	"io"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/discovery"
)

func BenchmarkCall(b *testing.B) {
	c := newClient(b, &backstay.Config{
		Base: instant, Default: backstay.Service{Endpoints: discovery.Addrs("10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80")},
	})
	run := func(rt http.RoundTripper) func(*testing.B) {
		return func(b *testing.B) {
			client := &http.Client{Transport: rt}
			one := func(req *http.Request) {
				resp, err := client.Do(req)
				if err != nil {
					b.Error(err)
					return
				}
				_, _ = resp.Body.Read(nil)
				_ = resp.Body.Close()
			}
			request := func() *http.Request {
				req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "http://orders/x", nil)
				require.NoError(b, err)
				return req
			}
			b.Run("serial", func(b *testing.B) {
				b.ReportAllocs()
				req := request()
				for b.Loop() {
					one(req)
				}
			})
			b.Run("parallel", func(b *testing.B) {
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					req := request()
					for pb.Next() {
						one(req)
					}
				})
			})
		}
	}
	b.Run("http.Client", run(instant))
	b.Run("backstay", run(c))
}

func BenchmarkCallOverLoopback(b *testing.B) {
	fleet := backstaytest.NewFleet(b, 1, nil)
	c := fleetClient(b, fleet, nil)
	run := func(rt http.RoundTripper, url string) func(*testing.B) {
		return func(b *testing.B) {
			b.ReportAllocs()
			client := &http.Client{Transport: rt}
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					resp, err := client.Get(url)
					if err != nil {
						b.Error(err)
						return
					}
					_, _ = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
				}
			})
		}
	}
	b.Run("http.Transport", run(fleet.Transport(), fleet.Server(0).URL()))
	b.Run("backstay", run(c, fleet.URL()))
}
