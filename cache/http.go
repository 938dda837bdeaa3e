package cache

import (
	"context"
	"hash/maphash"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/internal/clock"
	"github.com/backstay/backstay/internal/layer"
	"github.com/backstay/backstay/outcome"
)

// HTTP keeps responses to plain reads for a fixed time. All methods may be
// called concurrently. It has no goroutines and needs no closing.
//
// It is a simple cache, for services that say little or nothing about caching:
// the user says for how long. It is not the cache of RFC 9111: it neither
// revalidates nor keeps variants nor serves what is stale. Where it is not sure
// it stays out of the way:
//
//   - Only a GET is answered, and not if it bears a body, credentials in its URL
//     or one of Authorization, Proxy-Authorization, Cookie, Range, If-*, Upgrade,
//     Cache-Control or Pragma. A HEAD is not answered from a GET.
//   - The key is the scheme, the host, the path, the query and Accept-Encoding.
//     Where the answer depends on anything else, such as an API key in a header
//     of its own, Skip is needed.
//   - What layers below make of a request counts too, as far as they show it in
//     Response.Request: if it got one of the fields above there, another method,
//     a body, credentials in its URL, another query or another Accept-Encoding,
//     its answer is not stored. Other fields, a trace's for example, the host and
//     the path are not looked at.
//   - Only a 200 is stored, without Set-Cookie, trailers, a Cache-Control of
//     no-store, no-cache or private, or a Vary of more than Accept-Encoding, up to
//     MaxBody; no event streams. It is stored once the caller has read its body
//     to the end, and never if that broke or was closed before. A body that ends
//     with its connection is not stored, for it may be a broken one.
//   - A request of another method than GET, HEAD, OPTIONS or TRACE invalidates
//     its URL, and those of the same origin in the answer's Location and
//     Content-Location, when the answer is below 400 or got lost. What was asked
//     for before that is not given out any more, also if it arrives afterwards.
//
// A response from the cache has an Age and otherwise the stored fields, but no
// TLS state. Its body and header are the caller's own.
type HTTP struct {
	cfg   HTTPConfig
	store *Cache[httpKey, *httpEntry]
	seed  maphash.Seed
	// epochs change when a URL is invalidated, for all URLs that share a place:
	// an entry of an earlier epoch is not given out. So an invalidation reaches
	// all variants of a URL, and those on their way, without looking for them.
	epochs [1 << 10]atomic.Uint64
	reads  reads
	counts httpCounters
}

// NewHTTP returns an HTTP cache. A nil cfg is an empty one.
func NewHTTP(cfg *HTTPConfig) (*HTTP, error) {
	filled, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	store, err := New(filled.store())
	if err != nil {
		return nil, err
	}
	return &HTTP{
		cfg:   filled,
		store: store,
		seed:  maphash.MakeSeed(),
		reads: reads{under: make(map[httpKey]chan struct{})},
	}, nil
}

// Layer puts the cache in front of next; nil means http.DefaultTransport. Several
// layers of one cache share its responses: their transports must be such that
// one's answer is as good as another's. Alone, the layer keeps net/http's
// contract; within a client it belongs above retries.
//
// Layers below may add an Authorization or a Cookie on behalf of the caller: see
// [HTTP] for how that is noticed. Where one identifies the caller otherwise, in a
// field of its own or in the path, adds credentials for some callers only, or
// does not show in Response.Request what it has sent, it belongs above this
// layer, where the key or Skip can tell the callers apart.
func (h *HTTP) Layer(next http.RoundTripper) http.RoundTripper { return h.layer(next, h.cfg.TTL) }

// LayerWith is Layer with another TTL than the config's for what this layer
// stores, so that the routes of a service can share a cache. With a ttl of 0 the
// layer neither stores nor answers anything; it only invalidates what its
// requests may have changed.
func (h *HTTP) LayerWith(ttl time.Duration) func(http.RoundTripper) http.RoundTripper {
	return func(next http.RoundTripper) http.RoundTripper { return h.layer(next, ttl) }
}

func (h *HTTP) layer(next http.RoundTripper, ttl time.Duration) http.RoundTripper {
	l := &httpLayer{cache: h, ttl: ttl}
	return l.Around(l, next)
}

// Invalidate makes sure that no response to u that was asked for until now is
// given out any more.
func (h *HTTP) Invalidate(u *url.URL) { h.invalidate(urlOf(u, "")) }

// Clear removes all responses. Those that are on their way are not stored.
func (h *HTTP) Clear() {
	for i := range h.epochs {
		h.epochs[i].Add(1)
	}
	h.store.Clear()
}

func (h *HTTP) invalidate(u httpURL) {
	h.counts.invalidations.Add(1)
	h.epoch(u).Add(1)
}

func (h *HTTP) epoch(u httpURL) *atomic.Uint64 {
	return &h.epochs[maphash.Comparable(h.seed, u)%uint64(len(h.epochs))]
}

// find returns the response stored under key in this epoch, or nil.
func (h *HTTP) find(key httpKey, epoch uint64) *httpEntry {
	if e, ok := h.store.GetIfPresent(key); ok && e.epoch == epoch {
		return e
	}
	return nil
}

// httpLayer is the cache over one transport.
type httpLayer struct {
	layer.Base
	cache *HTTP
	ttl   time.Duration // as HTTPConfig.TTL; 0 stores and answers nothing
}

// RoundTripFrame answers from the cache or the transport below.
func (l *httpLayer) RoundTripFrame(req *http.Request, f *call.Frame) (*http.Response, error) {
	h := l.cache
	key, ok := keyOf(req)
	if !ok || l.ttl == 0 || h.cfg.Skip != nil && h.cfg.Skip(req) {
		if l.ttl != 0 {
			f.SetCache("bypass")
			h.counts.bypasses.Add(1)
		}
		resp, err := l.Forward(req, f)
		if !safe(req.Method) {
			h.changed(req, resp, err)
		}
		return resp, err
	}

	epoch := h.epoch(key.httpURL).Load()
	e := h.find(key, epoch)
	var release func()
	if e == nil && h.cfg.Coalesce > 0 {
		var waited bool
		var err error
		if release, waited, err = h.reads.begin(req, f, key, h.cfg.Coalesce); waited {
			h.counts.coalesced.Add(1)
		}
		if err != nil {
			layer.CloseBody(req)
			return nil, err
		}
		// Look again: another read may have ended since, waited for or not.
		epoch = h.epoch(key.httpURL).Load()
		if e = h.find(key, epoch); e != nil && release != nil {
			release()
		}
	}
	if e == nil {
		f.SetCache("miss")
		f.SetYoung(false) // it may have waited for another call
		h.counts.misses.Add(1)
		return l.fetch(req, f, key, epoch, release)
	}
	layer.CloseBody(req)
	if ctx := req.Context(); ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	f.SetCache("hit")
	h.counts.hits.Add(1)
	return e.answer(req), nil
}

// fetch asks the transport below and arranges for the answer to be stored.
// release, if there is one, is called when it is known whether it is.
func (l *httpLayer) fetch(
	req *http.Request, f *call.Frame, key httpKey, epoch uint64, release func(),
) (*http.Response, error) {
	handedOn := false
	defer func() {
		if release != nil && !handedOn {
			release()
		}
	}()
	sent := clock.Now()
	resp, err := l.Forward(req, f)
	if err != nil || resp == nil {
		return resp, err
	}
	h := l.cache
	ttl, ok := mayStore(resp, l.ttl, h.cfg.MaxBody, time.Now())
	if !ok || !key.asks(resp.Request) {
		return resp, nil
	}
	came := clock.Now()
	e := &httpEntry{
		status: resp.Status, proto: resp.Proto, major: resp.ProtoMajor, minor: resp.ProtoMinor,
		header: storedHeader(resp.Header), uncompressed: resp.Uncompressed,
		sent: sent, age: ageOf(resp.Header), epoch: epoch,
	}
	store := func(body []byte, complete bool) {
		if complete && len(resp.Trailer) == 0 { // HTTP/2 may send some without notice
			e.body = body
			h.keep(key, e, ttl, came)
		}
		if release != nil {
			release()
		}
	}
	handedOn = true
	if resp.Body == nil || resp.Body == http.NoBody {
		store(nil, resp.ContentLength <= 0)
		return resp, nil
	}
	resp.Body = &recorder{inner: resp.Body, expected: max(resp.ContentLength, 0), maxBody: h.cfg.MaxBody, done: store}
	return resp, nil
}

// keep stores e, which came a while ago and may be given out for ttl since.
func (h *HTTP) keep(key httpKey, e *httpEntry, ttl time.Duration, came time.Time) {
	if h.epoch(key.httpURL).Load() != e.epoch {
		return
	}
	if ttl > 0 {
		if ttl -= clock.Now().Sub(came); ttl <= 0 {
			return
		}
	}
	h.counts.stored.Add(1)
	h.store.SetWithTTL(key, e, ttl)
}

// changed invalidates what an unsafe request may have changed.
func (h *HTTP) changed(req *http.Request, resp *http.Response, err error) {
	switch {
	case req.URL == nil:
		return
	case err != nil:
		// The request may have been acted on, unless it is certain that not.
		if outcome.NotSent(err) || outcome.Refused(err) {
			return
		}
	case resp == nil || resp.StatusCode >= http.StatusBadRequest:
		return
	}
	h.invalidate(urlOf(req.URL, req.Host))
	if resp == nil {
		return
	}
	for _, name := range []string{"Location", "Content-Location"} {
		value := resp.Header.Get(name)
		if value == "" {
			continue
		}
		// RFC 9111 §4.4: only of the same origin, or any server could empty
		// the cache of others.
		u, err := req.URL.Parse(value)
		if err == nil && u.Scheme == req.URL.Scheme && hostOf(u.Scheme, u.Host) == hostOf(u.Scheme, req.URL.Host) {
			u.Host = req.URL.Host
			h.invalidate(urlOf(u, req.Host))
		}
	}
}
