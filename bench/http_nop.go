package main

import (
	"context"
	"net/http"
	"strings"

	"github.com/backstay/backstay"
)

const nopReply = "ok"

// nopTransport answers at once.
type nopTransport struct{}

func (nopTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		req.Body.Close()
	}
	return &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: make(http.Header), Body: &nopBody{*strings.NewReader(nopReply)},
		ContentLength: int64(len(nopReply)), Request: req,
	}, nil
}

// nopBody is a body as http.NoBody is not: a layer that has to see its end must
// wrap it. As with those of net/http, Read is the only way to its content.
type nopBody struct{ content strings.Reader }

func (b *nopBody) Read(p []byte) (int, error) { return b.content.Read(p) }
func (*nopBody) Close() error                 { return nil }

func nopAddrs() []string { return []string{nodeAddr(0), nodeAddr(1), nodeAddr(2), nodeAddr(3)} }

// nopContests compare what clients do besides sending.
func nopContests() []contest {
	wrappers := []wrapper{
		bareClient(),
		ourClient(ours, backstay.Inherit, nopAddrs()...),
		ourClient("backstay-1-endpoint", backstay.Inherit, nopAddrs()[0]),
		ourLayers("balancer", balancerLayer),
		ourLayers("retry", retryLayer),
		ourLayers("breaker", breakerLayer),
		ourLayers("retry+breaker", retryLayer, breakerLayer),
		ourLayers("rate", rateLayer),
		ourLayers("concurrency", concurrencyLayer),
		ourLayers("cache-hit", cacheLayer),
		{name: "httplb", module: moduleHTTPLB, wrap: func(s *stage, base http.RoundTripper) (doer, error) {
			return httplbClient(s, nopAddrs(), httplbTransport(func() http.RoundTripper { return base })), nil
		}},
		failsafeClient(false, false),
		failsafeClient(true, false),
		failsafeClient(true, true),
		retryableClient(),
		heimdallClient(),
	}
	get := contest{name: "HTTPNop/get", modes: []mode{serial(), parallel()}}
	for _, w := range wrappers {
		get.peers = append(get.peers, peer{name: w.name, module: w.module, setup: func(s *stage) (job, error) {
			client, err := w.wrap(s, nopTransport{})
			ctx := context.Background()
			return each(func() error {
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://orders/v1/items", nil)
				if err != nil {
					return err
				}
				return exchange(client, req, int64(len(nopReply)))
			}), err
		}})
	}
	return []contest{get}
}
