package cache_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/cache"
	"github.com/backstay/backstay/call"
)

const u = "http://items/v1/items?page=1"

func TestNewHTTPRefusesAllThatIsWrongAtOnce(t *testing.T) {
	_, err := cache.NewHTTP(&cache.HTTPConfig{Jitter: 1.5, MaxEntries: -1, MaxBytes: -1})
	require.EqualError(t, err, `cache: HTTPConfig.Jitter is 1.5, want < 1
cache: HTTPConfig.MaxEntries is -1, want >= 1, or 0 for the default: a cache is bounded
cache: HTTPConfig.MaxBytes is -1, want >= 1, or 0 for the default: a cache is bounded`)
	_, err = cache.NewHTTP(&cache.HTTPConfig{Jitter: math.NaN(), MaxBytes: 100, MaxBody: 101})
	require.EqualError(t, err, `cache: HTTPConfig.Jitter is NaN, want < 1
cache: HTTPConfig.MaxBody is 101, want <= MaxBytes (100)`)
}

func TestReadsAreAnsweredFromTheCacheUntilTheirTTLIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		origin := answers(func() *http.Response { return text("hello", "Content-Type", "text/plain", "Age", "7") })
		h, err := cache.NewHTTP(&cache.HTTPConfig{Jitter: -1})
		require.NoError(t, err)
		rt := h.Layer(origin)
		resp, body := get(t, rt, u)
		require.Equal(t, "hello", body)
		require.Equal(t, []string{"7"}, resp.Header["Age"], "the origin's own")
		time.Sleep(10*time.Second - 1)
		resp, body = get(t, rt, u)
		require.Equal(t, "hello", body)
		require.Equal(t, "200 OK", resp.Status)
		require.Equal(t, 200, resp.StatusCode)
		require.Equal(t, "HTTP/1.1", resp.Proto)
		require.Equal(t, http.Header{"Content-Type": {"text/plain"}, "Age": {"16"}}, resp.Header)
		require.EqualValues(t, 5, resp.ContentLength)
		require.Empty(t, resp.TransferEncoding)
		require.EqualValues(t, 1, origin.calls.Load())
		time.Sleep(1)
		get(t, rt, u)
		require.EqualValues(t, 2, origin.calls.Load())
		require.Equal(t, cache.HTTPStats{Hits: 1, Misses: 2, Stored: 2}, h.Stats())
	})
}

func TestResponseLimitsItsLifetimeButDoesNotProlongIt(t *testing.T) {
	now := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // a bubble's beginning
	date := func(d time.Duration) string { return now.Add(d).Format(http.TimeFormat) }
	for _, tc := range []struct {
		name   string
		ttl    time.Duration
		fields []string
		want   time.Duration
	}{
		{"nothing said", time.Minute, nil, time.Minute},
		{"max-age", time.Minute, []string{"Cache-Control", "max-age=5"}, 5 * time.Second},
		{"max-age beyond", time.Minute, []string{"Cache-Control", "max-age=500"}, time.Minute},
		{"max-age less age", time.Minute, []string{"Cache-Control", "max-age=5", "Age", "3"}, 2 * time.Second},
		{"max-age passed", time.Minute, []string{"Cache-Control", "max-age=5", "Age", "5"}, 0},
		{"max-age of 0", time.Minute, []string{"Cache-Control", "max-age=0"}, 0},
		{"garbage", time.Minute, []string{"Cache-Control", "max-age=soon"}, 0},
		{"s-maxage first", time.Minute, []string{"Cache-Control", "max-age=5, s-maxage=9"}, 9 * time.Second},
		{"Expires", time.Minute, []string{"Expires", date(5 * time.Second)}, 5 * time.Second},
		{"max-age before Expires", time.Minute, []string{"Expires", date(0), "Cache-Control", "max-age=5"}, 5 * time.Second},
		{"Expires by the origin's clock", time.Minute, []string{"Expires", date(time.Hour + 5*time.Second), "Date", date(time.Hour)}, 5 * time.Second},
		{"Expires in the past", time.Minute, []string{"Expires", date(-time.Hour)}, 0},
		{"Expires 0", time.Minute, []string{"Expires", "0"}, 0},
		{"no limit but the response's", -1, []string{"Cache-Control", "max-age=500"}, 500 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				origin := answers(func() *http.Response { return text("x", tc.fields...) })
				rt := newHTTP(t, &cache.HTTPConfig{TTL: tc.ttl}).Layer(origin)
				get(t, rt, u)
				if tc.want == 0 {
					get(t, rt, u)
					require.EqualValues(t, 2, origin.calls.Load())
					return
				}
				time.Sleep(tc.want - 1)
				get(t, rt, u)
				require.EqualValues(t, 1, origin.calls.Load())
				time.Sleep(1)
				get(t, rt, u)
				require.EqualValues(t, 2, origin.calls.Load())
			})
		})
	}
}

func TestWithoutAnyLimitAResponseIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		origin := answers(func() *http.Response { return text("x") })
		rt := newHTTP(t, &cache.HTTPConfig{TTL: -1}).Layer(origin)
		get(t, rt, u)
		time.Sleep(10_000 * time.Hour)
		resp, _ := get(t, rt, u)
		require.Equal(t, "36000000", resp.Header.Get("Age"))
	})
}

func TestLifetimeCountsFromTheHeaderNotFromTheBodysEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		origin := answers(func() *http.Response { return text("x") })
		rt := newHTTP(t, &cache.HTTPConfig{TTL: 10 * time.Second}).Layer(origin)
		slowly := func(d time.Duration) {
			resp, err := rt.RoundTrip(newRequest(t, http.MethodGet, u))
			require.NoError(t, err)
			time.Sleep(d)
			_, _ = io.Copy(io.Discard, resp.Body)
			require.NoError(t, resp.Body.Close())
		}
		slowly(6 * time.Second)
		time.Sleep(4*time.Second - 1)
		resp, _ := get(t, rt, u)
		require.Equal(t, "9", resp.Header.Get("Age"))
		time.Sleep(1)
		slowly(10 * time.Second)
		get(t, rt, u)
		require.EqualValues(t, 3, origin.calls.Load(), "too old when it had arrived")
	})
}

func TestRequestsThatBypassTheCache(t *testing.T) {
	field := func(name string) func(*http.Request) {
		return func(r *http.Request) { r.Header[name] = []string{"x"} }
	}
	cases := map[string]func(*http.Request){
		"HEAD":         func(r *http.Request) { r.Method = http.MethodHead },
		"OPTIONS":      func(r *http.Request) { r.Method = http.MethodOptions },
		"a body":       func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader("x")) },
		"credentials":  func(r *http.Request) { r.URL.User = url.User("me") },
		"opaque":       func(r *http.Request) { r.URL.Opaque = "//items/v1/items" },
		"forced query": func(r *http.Request) { r.URL.ForceQuery = true },
		"two encodings": func(r *http.Request) {
			r.Header["accept-encoding"], r.Header["Accept-Encoding"] = []string{"a"}, []string{"b"}
		},
		"Skip":           func(r *http.Request) { r.Header["X-Api-Key"] = []string{"secret"} },
		"lower case":     field("authorization"),
		"Cache-Control":  func(r *http.Request) { r.Header.Set("Cache-Control", "no-cache") },
		"no-store":       func(r *http.Request) { r.Header.Set("Cache-Control", "no-store") },
		"another scheme": func(r *http.Request) { r.URL.Scheme = "ftp" },
		"no host":        func(r *http.Request) { r.URL.Host = "" },
	}
	for _, name := range []string{
		"Authorization", "Proxy-Authorization", "Cookie", "Range", "If-None-Match", "If-Modified-Since",
		"If-Match", "If-Unmodified-Since", "If-Range", "Pragma", "Upgrade",
	} {
		cases[name] = field(name)
	}
	for name, change := range cases {
		t.Run(name, func(t *testing.T) {
			n := 0
			origin := answers(func() *http.Response { n++; return text(fmt.Sprint(n)) })
			h := newHTTP(t, &cache.HTTPConfig{Skip: func(r *http.Request) bool { return r.Header["X-Api-Key"] != nil }})
			rt := h.Layer(origin)
			special := newRequest(t, http.MethodGet, u)
			change(special)
			_, body := fetch(t, rt, special.Clone(t.Context()))
			require.Equal(t, "1", body)
			_, body = get(t, rt, u)
			require.Equal(t, "2", body, "not stored")
			_, body = fetch(t, rt, special)
			require.Equal(t, "3", body, "not answered from the cache")
			_, body = get(t, rt, u)
			require.Equal(t, "2", body, "no harm to what is")
			require.EqualValues(t, 2, h.Stats().Bypasses)
		})
	}
}

func TestResponsesThatAreNotStored(t *testing.T) {
	with := func(fields ...string) func() *http.Response {
		return func() *http.Response { return text("x", fields...) }
	}
	status := func(code int) func() *http.Response {
		return func() *http.Response { r := text("x"); r.StatusCode = code; return r }
	}
	change := func(f func(*http.Response)) func() *http.Response {
		return func() *http.Response { r := text("x"); f(r); return r }
	}
	for name, resp := range map[string]func() *http.Response{
		"201":               status(201),
		"204":               status(204),
		"206":               status(206),
		"301":               status(301),
		"404":               status(404),
		"500":               status(500),
		"Set-Cookie":        with("Set-Cookie", "a=b"),
		"set-cookie":        change(func(r *http.Response) { r.Header["set-cookie"] = []string{"a=b"} }),
		"no-store":          with("Cache-Control", "no-store"),
		"second line":       with("Cache-Control", "max-age=100", "Cache-Control", "No-Store"),
		"private":           with("Cache-Control", "max-age=100, private"),
		"private fields":    with("Cache-Control", `private="x, y", max-age=100`),
		"no-cache":          with("Cache-Control", "no-cache"),
		"open quote":        with("Cache-Control", `max-age="100, x`),
		"Vary":              with("Vary", "Accept"),
		"Vary, second line": with("Vary", "Accept-Encoding", "Vary", "accept-encoding, Cookie"),
		"Vary *":            with("Vary", "*"),
		"event stream":      with("Content-Type", "Text/Event-Stream; charset=utf-8"),
		"pushed images":     with("Content-Type", "multipart/x-mixed-replace; boundary=x"),
		"Content-Range":     with("Content-Range", "bytes 0-1/3"),
		"trailers":          change(func(r *http.Response) { r.Trailer = http.Header{"X": nil} }),
		"Trailer":           with("Trailer", "X"),
		"late trailers": change(func(r *http.Response) {
			r.Body = io.NopCloser(readerFunc(func([]byte) (int, error) {
				r.Trailer = http.Header{"X": {"y"}}
				return 0, io.EOF
			}))
		}),
		"too short":                    change(func(r *http.Response) { r.ContentLength = 2 }),
		"too long":                     change(func(r *http.Response) { r.ContentLength = 1; r.Body = io.NopCloser(strings.NewReader("xy")) }),
		"no body at all":               change(func(r *http.Response) { r.ContentLength = 2; r.Body = nil }),
		"announced to be over the cap": change(func(r *http.Response) { r.ContentLength = 1<<20 + 1 }),
		"ends with its connection":     change(func(r *http.Response) { r.Close, r.TransferEncoding = true, nil }),
	} {
		t.Run(name, func(t *testing.T) {
			origin := answers(resp)
			h := newHTTP(t, nil)
			rt := h.Layer(origin)
			get(t, rt, u)
			get(t, rt, u)
			require.EqualValues(t, 2, origin.calls.Load())
			require.Zero(t, h.Stats().Stored)
		})
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestResponsesThatAreStored(t *testing.T) {
	change := func(f func(*http.Response)) func() *http.Response {
		return func() *http.Response { r := text(""); f(r); return r }
	}
	for name, resp := range map[string]func() *http.Response{
		"nil body":      change(func(r *http.Response) { r.Body, r.ContentLength = nil, 0 }),
		"no body":       change(func(r *http.Response) { r.Body, r.ContentLength = http.NoBody, 0 }),
		"empty body":    change(func(*http.Response) {}),
		"nil header":    change(func(r *http.Response) { r.Header = nil }),
		"known length":  func() *http.Response { r := text("xyz"); r.ContentLength = 3; return r },
		"other control": func() *http.Response { return text("x", "Cache-Control", `public, must-revalidate, ext="no-store"`) },
		"Vary":          func() *http.Response { return text("x", "Vary", "accept-encoding,, Accept-Encoding") },
		"unpacked": change(func(r *http.Response) {
			r.Close, r.TransferEncoding, r.Uncompressed = true, nil, true
		}),
	} {
		t.Run(name, func(t *testing.T) {
			origin := answers(resp)
			rt := newHTTP(t, nil).Layer(origin)
			first, body1 := get(t, rt, u)
			second, body2 := get(t, rt, u)
			require.EqualValues(t, 1, origin.calls.Load())
			require.Equal(t, body1, body2)
			require.Equal(t, first.Uncompressed, second.Uncompressed)
			require.NotNil(t, second.Body)
			require.EqualValues(t, len(body2), second.ContentLength)
		})
	}
}

func TestKeysThatAreTheSameAndThoseThatAreNot(t *testing.T) {
	const base = "http://items/a"
	set := func(f func(*http.Request)) *http.Request {
		req := newRequest(t, http.MethodGet, base)
		f(req)
		return req
	}
	plain := func(url string, fields ...string) *http.Request { return newRequest(t, http.MethodGet, url, fields...) }
	for name, tc := range map[string]struct {
		req  *http.Request
		same bool
	}{
		"host in upper case": {plain("http://ITEMS/a"), true},
		"default port":       {plain("http://items:80/a"), true},
		"fragment":           {plain("http://items/a#top"), true},
		"no method":          {set(func(r *http.Request) { r.Method = "" }), true},
		"Host as the URL":    {set(func(r *http.Request) { r.Host = "items" }), true},
		"no Host":            {set(func(r *http.Request) { r.Host = "" }), true},
		"empty body":         {set(func(r *http.Request) { r.Body = http.NoBody }), true},
		"other fields":       {plain(base, "Accept", "x", "User-Agent", "y"), true},
		"no header":          {set(func(r *http.Request) { r.Header = nil }), true},
		"nil field":          {set(func(r *http.Request) { r.Header["Cookie"] = nil }), true},
		"scheme":             {plain("https://items/a"), false},
		"port":               {plain("http://items:8080/a"), false},
		"TLS port":           {plain("http://items:443/a"), false},
		"path":               {plain("http://items/A"), false},
		"slash":              {plain("http://items/a/"), false},
		"escaped":            {plain("http://items/%61%2F"), false},
		"query":              {plain("http://items/a?b"), false},
		"virtual host":       {set(func(r *http.Request) { r.Host = "other" }), false},
		"encoding":           {plain(base, "Accept-Encoding", "gzip"), false},
	} {
		t.Run(name, func(t *testing.T) {
			n := 0
			origin := answers(func() *http.Response { n++; return text(fmt.Sprint(n)) })
			rt := newHTTP(t, nil).Layer(origin)
			get(t, rt, base)
			_, body := fetch(t, rt, tc.req)
			require.Equal(t, tc.same, body == "1")
			_, body = get(t, rt, base)
			require.Equal(t, "1", body)
		})
	}
	origin := answers(func() *http.Response { return text("x") })
	rt := newHTTP(t, nil).Layer(origin)
	get(t, rt, "http://items")
	get(t, rt, "http://items/")
	get(t, rt, u, "Accept-Encoding", "a", "Accept-Encoding", "b")
	get(t, rt, u, "Accept-Encoding", "b", "Accept-Encoding", "a")
	require.EqualValues(t, 3, origin.calls.Load())
}

// TestEncodedAndDecodedVariantsAreNotMixed: gregjones/httpcache#86.
func TestEncodedAndDecodedVariantsAreNotMixed(t *testing.T) {
	plain := strings.Repeat("hello ", 1000)
	rt, url, requests := server(t, nil, func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Vary", "Accept-Encoding")
		w.Header().Set("ETag", `"same"`)
		if !strings.Contains(req.Header.Get("Accept-Encoding"), "gzip") {
			_, _ = io.WriteString(w, plain)
			return
		}
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		_, _ = io.WriteString(z, plain)
		_ = z.Close()
	})
	for range 2 {
		resp, body := get(t, rt, url) // the transport asks for gzip and unpacks
		require.Equal(t, plain, body)
		require.True(t, resp.Uncompressed)
		require.Empty(t, resp.Header.Get("Content-Encoding"))

		resp, body = get(t, rt, url, "Accept-Encoding", "gzip")
		require.Equal(t, "gzip", resp.Header.Get("Content-Encoding"))
		z, err := gzip.NewReader(strings.NewReader(body))
		require.NoError(t, err)
		unpacked, err := io.ReadAll(z)
		require.NoError(t, err)
		require.Equal(t, plain, string(unpacked))

		resp, body = get(t, rt, url, "Accept-Encoding", "identity")
		require.Equal(t, plain, body)
		require.False(t, resp.Uncompressed)
	}
	require.EqualValues(t, 3, requests.Load())
}

// TestBodyWhoseEndTheReaderDidNotSeeIsStored: gregjones/httpcache#104.
func TestBodyWhoseEndTheReaderDidNotSeeIsStored(t *testing.T) {
	value := map[string]string{"x": strings.Repeat("y", 5000)}
	for name, handler := range map[string]http.HandlerFunc{
		"chunked": func(w http.ResponseWriter, _ *http.Request) {
			_ = json.NewEncoder(w).Encode(value)
			w.(http.Flusher).Flush() // the end comes by itself
		},
		"Content-Length": func(w http.ResponseWriter, _ *http.Request) {
			text, _ := json.Marshal(value)
			w.Header().Set("Content-Length", fmt.Sprint(len(text)))
			_, _ = w.Write(text)
		},
		"gzip": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			_ = json.NewEncoder(z).Encode(value)
			_ = z.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // whose clock waits for the server to get to the end
				s := backstaytest.NewServer(t, handler, nil)
				rt := newHTTP(t, nil).Layer(s.Transport())
				for range 3 {
					resp, err := rt.RoundTrip(newRequest(t, http.MethodGet, s.URL()))
					require.NoError(t, err)
					var got map[string]string
					require.NoError(t, json.NewDecoder(resp.Body).Decode(&got))
					require.NoError(t, resp.Body.Close())
					require.Equal(t, value, got)
				}
				require.Equal(t, 1, s.Stats().Requests)
			})
		})
	}
	t.Run("in memory", func(t *testing.T) {
		for _, length := range []int64{-1, 3} {
			origin := answers(func() *http.Response { r := text("abc"); r.ContentLength = length; return r })
			rt := newHTTP(t, nil).Layer(origin)
			for range 2 {
				resp, err := rt.RoundTrip(newRequest(t, http.MethodGet, u))
				require.NoError(t, err)
				var got [3]byte
				_, err = io.ReadFull(resp.Body, got[:])
				require.NoError(t, err)
				require.Equal(t, "abc", string(got[:]))
				require.NoError(t, resp.Body.Close())
			}
			require.EqualValues(t, 1, origin.calls.Load(), "length %d", length)
		}
	})
}

// TestBodyThatIsNotCompleteIsNeverStored: sandrolain/httpcache stored it.
func TestBodyThatIsNotCompleteIsNeverStored(t *testing.T) {
	half := strings.Repeat("x", 10_000)
	for name, handler := range map[string]http.HandlerFunc{
		"chunked": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, half)
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		},
		"Content-Length": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "20000")
			_, _ = io.WriteString(w, half)
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		},
		"gzip": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			_, _ = io.WriteString(z, half)
			_ = z.Flush()
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		},
		"HTTP/1.0": func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				_, _ = io.WriteString(conn, "HTTP/1.0 200 OK\r\n\r\n"+half)
				_ = conn.Close()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			rt, url, requests := server(t, nil, handler)
			for range 2 {
				resp, err := rt.RoundTrip(newRequest(t, http.MethodGet, url))
				require.NoError(t, err)
				got, err := io.ReadAll(resp.Body)
				if name != "HTTP/1.0" { // where nobody can tell
					require.Error(t, err)
				}
				require.Equal(t, half, string(got), "what came is delivered")
				require.NoError(t, resp.Body.Close())
			}
			require.EqualValues(t, 2, requests.Load())
		})
	}
	t.Run("broken in memory", func(t *testing.T) {
		origin := answers(func() *http.Response { r := text(""); r.Body = io.NopCloser(broken("abc")); return r })
		rt := newHTTP(t, nil).Layer(origin)
		for range 2 {
			resp, err := rt.RoundTrip(newRequest(t, http.MethodGet, u))
			require.NoError(t, err)
			got, err := io.ReadAll(resp.Body)
			require.Equal(t, errBroken, err)
			require.Equal(t, "abc", string(got))
			require.NoError(t, resp.Body.Close())
		}
		require.EqualValues(t, 2, origin.calls.Load())
	})
}

func TestBodyWithoutAnEndThatIsSeenIsNeverStored(t *testing.T) {
	for name, inner := range map[string]io.Reader{
		"the last byte and the end together": iotest.DataErrReader(strings.NewReader("abcd")),
		"broken at the end":                  broken("abc"),
		"neither bytes nor an end": io.MultiReader(strings.NewReader("abc"),
			readerFunc(func([]byte) (int, error) { return 0, nil })),
	} {
		t.Run(name, func(t *testing.T) {
			origin := answers(func() *http.Response { r := text(""); r.Body = io.NopCloser(inner); return r })
			h := newHTTP(t, nil)
			resp, err := h.Layer(origin).RoundTrip(newRequest(t, http.MethodGet, u))
			require.NoError(t, err)
			_, err = io.ReadFull(resp.Body, make([]byte, 3))
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			require.Zero(t, h.Stats().Stored)
		})
	}
}

func TestBodyClosedEarlyIsNeverStored(t *testing.T) {
	for _, length := range []int64{-1, 6} {
		for _, read := range []int{0, 1, 5} {
			t.Run(fmt.Sprintf("length %d, %d read", length, read), func(t *testing.T) {
				inner := &body{}
				origin := answers(func() *http.Response {
					inner = &body{Reader: strings.NewReader("abcdef")}
					r := text("")
					r.Body, r.ContentLength = inner, length
					return r
				})
				rt := newHTTP(t, nil).Layer(origin)
				for range 2 {
					resp, err := rt.RoundTrip(newRequest(t, http.MethodGet, u))
					require.NoError(t, err)
					_, err = io.ReadFull(resp.Body, make([]byte, read))
					require.NoError(t, err)
					require.NoError(t, resp.Body.Close())
					require.NoError(t, resp.Body.Close())
					require.EqualValues(t, 1, inner.closed.Load())
				}
				require.EqualValues(t, 2, origin.calls.Load())
			})
		}
	}
}

// pipeBody is a body whose other end the test holds.
func pipeBody() (*http.Response, *io.PipeWriter) {
	r, w := io.Pipe()
	resp := text("")
	resp.Body = r
	return resp, w
}

func TestCloseWaitsOnlyShortlyForTheEndOfABody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w *io.PipeWriter
		origin := answers(func() *http.Response { var resp *http.Response; resp, w = pipeBody(); return resp })
		h := newHTTP(t, nil)
		rt := h.Layer(origin)
		resp, err := rt.RoundTrip(newRequest(t, http.MethodGet, u))
		require.NoError(t, err)
		go func() { _, _ = w.Write([]byte("abc")) }()
		_, err = io.ReadFull(resp.Body, make([]byte, 3))
		require.NoError(t, err)
		start := time.Now()
		require.NoError(t, resp.Body.Close())
		require.Equal(t, 10*time.Millisecond, time.Since(start))
		require.Zero(t, h.Stats().Stored)

		resp, err = rt.RoundTrip(newRequest(t, http.MethodGet, u))
		require.NoError(t, err)
		go func() {
			_, _ = w.Write([]byte("abc"))
			time.Sleep(9 * time.Millisecond)
			_ = w.Close()
		}()
		_, err = io.ReadFull(resp.Body, make([]byte, 3))
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.EqualValues(t, 1, h.Stats().Stored)
	})
}

func TestCloseDuringAReadStoresNothingAndReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		resp, w := pipeBody()
		origin := answers(func() *http.Response { return resp })
		h := newHTTP(t, nil)
		got, err := h.Layer(origin).RoundTrip(newRequest(t, http.MethodGet, u))
		require.NoError(t, err)
		read := make(chan error)
		go func() {
			_, err := io.Copy(io.Discard, got.Body)
			read <- err
		}()
		_, err = w.Write([]byte("abc"))
		require.NoError(t, err)
		synctest.Wait()
		start := time.Now()
		require.NoError(t, got.Body.Close())
		require.Zero(t, time.Since(start))
		require.ErrorIs(t, <-read, io.ErrClosedPipe)
		require.Zero(t, h.Stats().Stored)
	})
}

// TestBytesArePassedOnAsTheyCome: bartventer/httpcache held them back.
func TestBytesArePassedOnAsTheyCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		resp, w := pipeBody()
		origin := answers(func() *http.Response { return resp })
		rt := newHTTP(t, nil).Layer(origin)
		start := time.Now()
		got, err := rt.RoundTrip(newRequest(t, http.MethodGet, u))
		require.NoError(t, err)
		go func() {
			for i := range 3 {
				time.Sleep(time.Second)
				_, _ = fmt.Fprintf(w, "line %d\n", i)
			}
			_ = w.CloseWithError(errBroken)
		}()
		lines := bufio.NewScanner(got.Body)
		for i := range 3 {
			require.True(t, lines.Scan())
			require.Equal(t, fmt.Sprintf("line %d", i), lines.Text())
			require.Equal(t, time.Duration(i+1)*time.Second, time.Since(start))
		}
		require.False(t, lines.Scan())
		require.Equal(t, errBroken, lines.Err())
	})
}

func TestBodyOverTheCapIsDeliveredInFullAndNotStored(t *testing.T) {
	for _, length := range []int64{-1, 0} { // 0: as it is
		for size, stored := range map[int]bool{1000: true, 1001: false, 100_000: false} {
			t.Run(fmt.Sprint(length, size), func(t *testing.T) {
				long := strings.Repeat("x", size)
				origin := answers(func() *http.Response {
					r := text(long)
					if r.ContentLength = length; length == 0 {
						r.ContentLength = int64(size)
					}
					return r
				})
				h := newHTTP(t, &cache.HTTPConfig{MaxBody: 1000})
				rt := h.Layer(origin)
				for range 2 {
					_, got := get(t, rt, u)
					require.Equal(t, long, got)
				}
				require.Equal(t, stored, origin.calls.Load() == 1)
				require.Equal(t, stored, h.Stats().Stored == 1)
			})
		}
	}
}

func TestBytesStayWithinTheirBound(t *testing.T) {
	long := strings.Repeat("x", 10_000)
	origin := answers(func() *http.Response { return text(long) })
	h := newHTTP(t, &cache.HTTPConfig{MaxBytes: 100_000, MaxBody: -1})
	rt := h.Layer(origin)
	for i := range 100 {
		get(t, rt, fmt.Sprint("http://items/", i))
	}
	s := h.Stats()
	require.EqualValues(t, 100, s.Stored)
	require.EqualValues(t, 91, s.Evictions, "nine bodies with their headers fit")
}

// invalidates makes a request after two URLs have been cached, and reports which of them
// the cache has no more.
func invalidates(t *testing.T, at, other, method, url string, answer func() (*http.Response, error)) (a, b bool) {
	t.Helper()
	n := 0
	origin := &transport{do: func(req *http.Request) (*http.Response, error) {
		if req.Method == http.MethodGet {
			n++
			return text(fmt.Sprint(n)), nil
		}
		return answer()
	}}
	rt := newHTTP(t, nil).Layer(origin)
	cached := func(url string, fields ...string) bool {
		before := n
		get(t, rt, url, fields...)
		return n == before
	}
	cached(at)
	cached(at, "Accept-Encoding", "br")
	cached(other)
	if resp, err := rt.RoundTrip(newRequest(t, method, url)); err == nil {
		require.NoError(t, resp.Body.Close())
	}
	a = !cached(at)
	require.Equal(t, a, !cached(at, "Accept-Encoding", "br"), "in all variants")
	b = !cached(other)
	require.True(t, cached(at))
	return a, b
}

// TestUnsafeRequestInvalidates: gregjones/httpcache forgets another key.
func TestUnsafeRequestInvalidates(t *testing.T) {
	respond := func(status int, fields ...string) (*http.Response, error) {
		r := text("", fields...)
		r.StatusCode = status
		return r, nil
	}
	const at, other = "http://items/a", "http://items/b"
	for name, tc := range map[string]struct {
		method, url string
		answer      func() (*http.Response, error)
		a, b        bool // what is invalidated
	}{
		"POST":             {http.MethodPost, at, func() (*http.Response, error) { return respond(201) }, true, false},
		"PUT":              {http.MethodPut, at, func() (*http.Response, error) { return respond(204) }, true, false},
		"DELETE":           {http.MethodDelete, at, func() (*http.Response, error) { return respond(200) }, true, false},
		"unknown method":   {"PURGE", at, func() (*http.Response, error) { return respond(200) }, true, false},
		"redirected":       {http.MethodPost, at, func() (*http.Response, error) { return respond(303) }, true, false},
		"the same":         {http.MethodPost, "HTTP://Items:80/a", func() (*http.Response, error) { return respond(200) }, true, false},
		"another query":    {http.MethodPost, at + "?b", func() (*http.Response, error) { return respond(200) }, false, false},
		"404":              {http.MethodPost, at, func() (*http.Response, error) { return respond(404) }, false, false},
		"500":              {http.MethodPost, at, func() (*http.Response, error) { return respond(500, "Location", other) }, false, false},
		"lost":             {http.MethodPost, at, func() (*http.Response, error) { return nil, errDown }, true, false},
		"not sent":         {http.MethodPost, at, func() (*http.Response, error) { return nil, notSent{} }, false, false},
		"HEAD":             {http.MethodHead, at, func() (*http.Response, error) { return respond(200) }, false, false},
		"Location":         {http.MethodPost, at, func() (*http.Response, error) { return respond(201, "Location", "/b") }, true, true},
		"Content-Location": {http.MethodPost, at, func() (*http.Response, error) { return respond(200, "Content-Location", "http://ITEMS:80/b") }, true, true},
		"another origin":   {http.MethodPost, "http://evil/a", func() (*http.Response, error) { return respond(201, "Location", other) }, false, false},
		"another scheme":   {http.MethodPost, at, func() (*http.Response, error) { return respond(201, "Location", "https://items/b") }, true, false},
		"bad Location":     {http.MethodPost, at, func() (*http.Response, error) { return respond(201, "Location", "%zz:") }, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			// URLs may by chance share what tells that they were invalidated: then more of
			// them are, but not with each of five caches.
			var a, b bool
			for range 5 {
				a, b = invalidates(t, at, other, tc.method, tc.url, tc.answer)
				require.False(t, tc.a && !a, "what has changed is invalidated in any case")
				require.False(t, tc.b && !b, "what has changed is invalidated in any case")
				if a == tc.a && b == tc.b {
					break
				}
			}
			require.Equal(t, tc.a, a)
			require.Equal(t, tc.b, b)
		})
	}
}

type notSent struct{}

func (notSent) Error() string { return "not sent" }
func (notSent) NotSent() bool { return true }

func TestAnswerThatWasAskedForBeforeAnInvalidationIsNotGivenOutAfterwards(t *testing.T) {
	target, err := url.Parse(u)
	require.NoError(t, err)
	for name, invalidate := range map[string]func(*cache.HTTP, http.RoundTripper){
		"POST":       func(_ *cache.HTTP, rt http.RoundTripper) { fetch(t, rt, newRequest(t, http.MethodPost, u)) },
		"Invalidate": func(h *cache.HTTP, _ http.RoundTripper) { h.Invalidate(target) },
		"Clear":      func(h *cache.HTTP, _ http.RoundTripper) { h.Clear() },
	} {
		t.Run(name, func(t *testing.T) {
			n := 0
			origin := answers(func() *http.Response { n++; return text(fmt.Sprint(n)) })
			h := newHTTP(t, nil)
			rt := h.Layer(origin)
			resp, err := rt.RoundTrip(newRequest(t, http.MethodGet, u))
			require.NoError(t, err)
			invalidate(h, rt)
			stale, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			require.Equal(t, "1", string(stale), "who asked before gets it")
			require.Zero(t, h.Stats().Stored)
			_, body := get(t, rt, u)
			require.NotEqual(t, "1", body)
			_, again := get(t, rt, u)
			require.Equal(t, body, again)
			invalidate(h, rt)
			_, body = get(t, rt, u)
			require.NotEqual(t, again, body, "what was stored is invalidated too")
		})
	}
}

// TestHeadConditionalAndPartialAnswersAreNotStored as what a GET gets.
func TestHeadConditionalAndPartialAnswersAreNotStored(t *testing.T) {
	rt, url, requests := server(t, nil, func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("ETag", `"1"`)
		http.ServeContent(w, req, "x.txt", time.Time{}, strings.NewReader("the whole body"))
	})
	for _, cached := range []bool{false, true} {
		resp, body := fetch(t, rt, newRequest(t, http.MethodHead, url))
		require.Equal(t, 200, resp.StatusCode)
		require.Empty(t, body)
		resp, body = get(t, rt, url, "Range", "bytes=4-8")
		require.Equal(t, 206, resp.StatusCode)
		require.Equal(t, "whole", body)
		resp, body = get(t, rt, url, "If-None-Match", `"1"`)
		require.Equal(t, 304, resp.StatusCode)
		require.Empty(t, body)
		resp, body = get(t, rt, url, "If-None-Match", `"2"`)
		require.Equal(t, 200, resp.StatusCode)
		require.Equal(t, "the whole body", body)
		resp, body = get(t, rt, url)
		require.Equal(t, "the whole body", body)
		require.Equal(t, cached, resp.Header.Get("Age") != "")
	}
	require.EqualValues(t, 9, requests.Load())
}

func TestHeaderAndBodyOfAHitAreTheCallersOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // in which no time passes, and Age stays 0
		fields := http.Header{"X": {"1", "2"}, "Y": {"3"}}
		origin := answers(func() *http.Response {
			r := text("hello")
			for name, values := range fields {
				r.Header[name] = append([]string(nil), values...)
			}
			return r
		})
		rt := newHTTP(t, nil).Layer(origin)
		first, _ := get(t, rt, u)
		first.Header["X"][0] = "changed" // also what was passed on is the caller's
		first.Header.Set("Z", "new")
		var open []*http.Response
		for range 3 {
			resp, err := rt.RoundTrip(newRequest(t, http.MethodGet, u))
			require.NoError(t, err)
			require.Equal(t, http.Header{"X": {"1", "2"}, "Y": {"3"}, "Age": {"0"}}, resp.Header)
			resp.Header["X"][0] = "changed"
			resp.Header["X"] = append(resp.Header["X"], "more")
			resp.Header.Del("Y")
			open = append(open, resp)
			_, err = resp.Body.Read(make([]byte, 2))
			require.NoError(t, err)
		}
		for _, resp := range open {
			rest, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			require.Equal(t, "llo", string(rest))
			require.NoError(t, resp.Body.Close())
			_, err = resp.Body.Read(make([]byte, 1))
			require.ErrorIs(t, err, http.ErrBodyReadAfterClose)
			_, err = resp.Body.(io.WriterTo).WriteTo(io.Discard)
			require.ErrorIs(t, err, http.ErrBodyReadAfterClose)
		}
		var copied bytes.Buffer
		resp, err := rt.RoundTrip(newRequest(t, http.MethodGet, u))
		require.NoError(t, err)
		n, err := io.Copy(&copied, resp.Body)
		require.NoError(t, err)
		require.EqualValues(t, 5, n)
		require.Equal(t, "hello", copied.String())
	})
}

func TestFieldsOfTheConnectionAreNotStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // in which no time passes, and Age stays 0
		origin := answers(func() *http.Response {
			return text("x", "Connection", "X-Hop, close", "X-Hop", "1", "Keep-Alive", "timeout=5", "X-End", "2",
				"Proxy-Authenticate", "Basic", "Transfer-Encoding", "chunked")
		})
		rt := newHTTP(t, nil).Layer(origin)
		first, _ := get(t, rt, u)
		require.Equal(t, "1", first.Header.Get("X-Hop"), "the answer itself is passed on untouched")
		hit, _ := get(t, rt, u)
		require.Equal(t, http.Header{"X-End": {"2"}, "Age": {"0"}}, hit.Header)
	})
}

func TestHitClosesTheRequestsBodyAndHonoursItsContext(t *testing.T) {
	origin := answers(func() *http.Response { return text("x") })
	rt := newHTTP(t, nil).Layer(origin)
	get(t, rt, u)
	req := newRequest(t, http.MethodGet, u)
	req.Body = http.NoBody
	before := *req
	resp, err := rt.RoundTrip(req)
	require.NoError(t, err)
	require.Same(t, req, resp.Request)
	require.Equal(t, before, *req, "the request is the caller's")

	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errDown)
	resp, err = rt.RoundTrip(newRequest(t, http.MethodGet, u).WithContext(ctx))
	require.Equal(t, errDown, err)
	require.Nil(t, resp)
	require.EqualValues(t, 1, origin.calls.Load())
}

func TestRequestWithABodyReachesTheTransportAndIsClosedThere(t *testing.T) {
	origin := answers(func() *http.Response { return text("x") })
	rt := newHTTP(t, nil).Layer(origin)
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		sent := &body{Reader: strings.NewReader("x")}
		req := newRequest(t, method, u)
		req.Body = sent
		fetch(t, rt, req)
		require.EqualValues(t, 1, sent.closed.Load())
	}
}

func TestErrorsAndMissingResponsesArePassedOn(t *testing.T) {
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodHead} {
		rt := newHTTP(t, &cache.HTTPConfig{Coalesce: time.Second}).Layer(&transport{
			do: func(*http.Request) (*http.Response, error) { return nil, errDown },
		})
		_, err := rt.RoundTrip(newRequest(t, method, u))
		require.Equal(t, errDown, err)
		rt = newHTTP(t, nil).Layer(&transport{do: func(*http.Request) (*http.Response, error) { return nil, nil }})
		resp, err := rt.RoundTrip(newRequest(t, method, u))
		require.Nil(t, resp)
		require.NoError(t, err)
		_, err = rt.RoundTrip(&http.Request{Method: method})
		require.NoError(t, err, "a request without a URL is the transport's to refuse")
	}
}

func TestUpgradedConnectionStaysWritable(t *testing.T) {
	rt, url, _ := server(t, nil, func(w http.ResponseWriter, _ *http.Request) {
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		line, _ := rw.ReadString('\n')
		_, _ = io.WriteString(conn, line)
	})
	resp, err := rt.RoundTrip(newRequest(t, http.MethodGet, url, "Connection", "Upgrade", "Upgrade", "echo"))
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, 101, resp.StatusCode)
	_, err = io.WriteString(resp.Body.(io.Writer), "hello\n")
	require.NoError(t, err)
	line, err := bufio.NewReader(resp.Body).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "hello\n", line)
}

func TestTrailersArriveAndTheirResponseIsNotStored(t *testing.T) {
	rt, url, requests := server(t, nil, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		_, _ = io.WriteString(w, "x")
		w.Header().Set("X-Sum", "1")
	})
	for range 2 {
		resp, _ := get(t, rt, url)
		require.Equal(t, "1", resp.Trailer.Get("X-Sum"))
	}
	require.EqualValues(t, 2, requests.Load())
}

func TestHTTP2ResponsesAreStored(t *testing.T) {
	var requests atomic.Int32
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		requests.Add(1)
		_, _ = io.WriteString(w, strings.Repeat("x", 10_000))
		if req.URL.Path == "/trailers" {
			w.Header().Set(http.TrailerPrefix+"X-Sum", "1") // not announced
		}
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	rt := newHTTP(t, nil).Layer(s.Client().Transport)
	for range 2 {
		resp, body := get(t, rt, s.URL)
		require.Equal(t, 2, resp.ProtoMajor)
		require.Len(t, body, 10_000)
	}
	require.EqualValues(t, 1, requests.Load())
	for range 2 {
		resp, _ := get(t, rt, s.URL+"/trailers")
		require.Equal(t, "1", resp.Trailer.Get("X-Sum"))
	}
	require.EqualValues(t, 3, requests.Load())
}

type closer struct {
	transport
	closed int
}

func (c *closer) CloseIdleConnections() { c.closed++ }

func TestLayerSaysWhatItWrapsAndPassesCloseIdleConnectionsOn(t *testing.T) {
	h := newHTTP(t, nil)
	c := &closer{}
	rt := h.Layer(c)
	rt.(interface{ CloseIdleConnections() }).CloseIdleConnections()
	require.Equal(t, 1, c.closed)
	unwrap := func(rt http.RoundTripper) http.RoundTripper {
		return rt.(interface{ Unwrap() http.RoundTripper }).Unwrap()
	}
	require.Same(t, c, unwrap(rt))
	rt = h.Layer(&transport{})
	rt.(interface{ CloseIdleConnections() }).CloseIdleConnections() // no such method below: nothing happens
	require.Equal(t, http.DefaultTransport, unwrap(h.Layer(nil)))
}

func TestLayersOfOneCacheShareItsResponses(t *testing.T) {
	h := newHTTP(t, nil)
	first, second := answers(func() *http.Response { return text("1") }), answers(func() *http.Response { return text("2") })
	get(t, h.Layer(first), u)
	_, body := get(t, h.Layer(second), u)
	require.Equal(t, "1", body)
	require.Zero(t, second.calls.Load())
}

func TestLayersOfOneCacheMayHaveTTLsOfTheirOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		origin := answers(func() *http.Response { return text("x") })
		h := newHTTP(t, &cache.HTTPConfig{TTL: time.Minute})
		long, off := h.LayerWith(time.Hour)(origin), h.LayerWith(0)(origin)
		get(t, long, u)
		time.Sleep(time.Hour - 1)
		get(t, long, u)
		require.EqualValues(t, 1, origin.calls.Load())
		get(t, off, u)
		require.EqualValues(t, 2, origin.calls.Load(), "off answers nothing")
		time.Sleep(1)
		get(t, off, u)
		get(t, long, u)
		require.EqualValues(t, 4, origin.calls.Load(), "and stores nothing")
		fetch(t, off, newRequest(t, http.MethodPost, u))
		get(t, long, u)
		require.EqualValues(t, 6, origin.calls.Load(), "but invalidates")
		require.Equal(t, cache.HTTPStats{Hits: 1, Misses: 3, Stored: 3, Invalidations: 1}, h.Stats())
	})
}

func TestLogSaysWhatTheCacheDid(t *testing.T) {
	origin := answers(func() *http.Response { return text("x") })
	rt := newHTTP(t, nil).Layer(origin)
	ctx, log := call.WithLog(t.Context())
	for _, method := range []string{http.MethodGet, http.MethodGet, http.MethodHead, http.MethodPost} {
		req := newRequest(t, method, u).WithContext(ctx)
		resp, err := rt.RoundTrip(req)
		require.NoError(t, err)
		_, _ = io.Copy(io.Discard, resp.Body)
	}
	var got []string
	for _, c := range log.Calls() {
		require.Equal(t, 200, c.Status)
		require.Positive(t, c.Duration)
		got = append(got, c.Method+" "+c.Cache)
	}
	require.Equal(t, []string{"GET miss", "GET hit", "HEAD bypass", "POST bypass"}, got)
}

func TestHitAllocatesLittleHoweverLongItsBody(t *testing.T) {
	for _, size := range []int{1 << 10, 1 << 19} {
		long := strings.Repeat("x", size)
		origin := answers(func() *http.Response {
			return text(long, "Content-Type", "application/json", "Date", "Sat, 01 Jan 2000 00:00:00 GMT",
				"Etag", `"1"`, "Server", "x", "Vary", "Accept-Encoding", "X-Request-Id", "1234")
		})
		rt := newHTTP(t, nil).Layer(origin)
		get(t, rt, u)
		req := newRequest(t, http.MethodGet, u, "Accept", "application/json", "User-Agent", "x", "Accept-Encoding", "gzip")
		fetch(t, rt, req)
		allocs := testing.AllocsPerRun(200, func() {
			resp, err := rt.RoundTrip(req)
			if err != nil || resp.Header.Get("Age") == "" {
				panic("no hit")
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		})
		require.LessOrEqual(t, allocs, 5.0, "%d bytes", size)
	}
}
