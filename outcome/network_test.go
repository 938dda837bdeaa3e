package outcome_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/http2"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/outcome"
)

// The errors in this file are made by real transports, servers and sockets: what
// net/http wraps and unwraps on the way is the point.

// attempt is one round trip and what it should be taken for.
type attempt struct {
	class   outcome.Class
	retry   outcome.Retry
	notSent bool
}

// check sends req and compares, also when the error went through http.Client.
func (want attempt) check(t *testing.T, rt http.RoundTripper, req *http.Request) {
	t.Helper()
	resp, err := rt.RoundTrip(req)
	if err == nil {
		require.NoError(t, resp.Body.Close())
	}
	o := outcome.HTTP(req, resp, err)
	require.Equal(t, want.class, o.Class, "class of %v", err)
	require.Equal(t, want.retry, o.Retry, "retry of %v", err)
	require.Equal(t, want.notSent, outcome.NotSent(err), "NotSent of %v", err)
	if err == nil {
		return
	}
	require.Equal(t, err, o.Err)
	dressed := &url.Error{Op: "Get", URL: "http://orders.test", Err: err}
	o = outcome.HTTP(req, nil, dressed)
	require.Equal(t, want.class, o.Class, "class of %v", dressed)
	require.Equal(t, want.retry, o.Retry, "retry of %v", dressed)
}

func request(t *testing.T, method, url, body string) *http.Request {
	t.Helper()
	// Not a *strings.Reader: without GetBody net/http repeats nothing by itself.
	req, err := http.NewRequestWithContext(t.Context(), method, url, io.MultiReader(strings.NewReader(body)))
	require.NoError(t, err)
	return req
}

// raw serves each connection to loopback with f, and closes it then.
func raw(t *testing.T, f func(c net.Conn)) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f(c)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return "http://" + l.Addr().String()
}

// readRequest takes a whole HTTP/1.1 request off a connection.
func readRequest(c net.Conn) {
	req, err := http.ReadRequest(bufio.NewReader(c))
	if err == nil {
		_, _ = io.Copy(io.Discard, req.Body)
	}
}

func newTransport(t *testing.T) *http.Transport {
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

func TestDialsThatFailWereNotSent(t *testing.T) {
	want := attempt{outcome.Failure, outcome.Always, true}
	dead := backstaytest.NewFleet(t, 1, nil).Server(0)
	dead.Kill()

	t.Run("refused", func(t *testing.T) {
		want.check(t, newTransport(t), request(t, "POST", dead.URL(), "x"))
	})
	t.Run("timed out", func(t *testing.T) {
		tr := newTransport(t)
		tr.DialContext = (&net.Dialer{Timeout: time.Nanosecond}).DialContext
		want.check(t, tr, request(t, "POST", dead.URL(), "x"))
	})
	t.Run("name not found", func(t *testing.T) {
		tr := newTransport(t)
		tr.DialContext = (&net.Dialer{Resolver: nxdomain(t)}).DialContext
		req := request(t, "POST", "http://nowhere.test", "x")
		want.check(t, tr, req)
		_, err := tr.RoundTrip(request(t, "POST", "http://nowhere.test", "x"))
		var dns *net.DNSError
		require.ErrorAs(t, err, &dns)
		require.True(t, dns.IsNotFound)
	})
	t.Run("proxy refused", func(t *testing.T) {
		proxy, err := url.Parse(dead.URL())
		require.NoError(t, err)
		tr := newTransport(t)
		tr.Proxy = http.ProxyURL(proxy)
		want.check(t, tr, request(t, "POST", "http://orders.test", "x"))
	})
}

// nxdomain is a resolver whose server knows no name.
func nxdomain(t *testing.T) *net.Resolver {
	t.Helper()
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil {
				continue
			}
			m.Response, m.RCode, m.Additionals = true, dnsmessage.RCodeNameError, nil
			if answer, err := m.Pack(); err == nil {
				_, _ = server.WriteTo(answer, from)
			}
		}
	}()
	t.Cleanup(func() { _ = server.Close(); <-done })
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", server.LocalAddr().String())
	}}
}

func TestPeersThatAreNotWhoTheyShouldBeAreTriedElsewhere(t *testing.T) {
	want := attempt{class: outcome.Failure, retry: outcome.Elsewhere}
	for _, p := range []backstaytest.Protocol{backstaytest.HTTP1TLS, backstaytest.HTTP2} {
		t.Run(p.String(), func(t *testing.T) {
			fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Protocol: p})
			url := fleet.Server(0).URL()
			t.Run("unknown authority", func(t *testing.T) {
				tr := fleet.Transport()
				tr.TLSClientConfig = &tls.Config{ServerName: fleet.Service}
				want.check(t, tr, request(t, "POST", url, "x"))
			})
			t.Run("another name", func(t *testing.T) {
				want.check(t, fleet.Transport(), request(t, "POST", url, "x")) // its address
			})
			t.Run("expired", func(t *testing.T) {
				tr := fleet.Transport()
				tr.TLSClientConfig.ServerName = fleet.Service
				tr.TLSClientConfig.Time = func() time.Time { return time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC) }
				want.check(t, tr, request(t, "POST", url, "x"))
			})
		})
	}
	t.Run("HTTPS to a server of HTTP", func(t *testing.T) {
		s := backstaytest.NewFleet(t, 1, nil).Server(0)
		want.check(t, newTransport(t), request(t, "POST", "https://"+s.Addr, "x"))
	})
	t.Run("HTTPS to a server of something else", func(t *testing.T) {
		url := raw(t, func(c net.Conn) {
			_, _ = io.WriteString(c, "220 mail.test ESMTP\r\n")
			_, _ = c.Read(make([]byte, 1<<10))
		})
		want.check(t, newTransport(t), request(t, "POST", strings.Replace(url, "http:", "https:", 1), "x"))
	})
}

func TestHTTPToAServerOfHTTPSIsAnAnswer(t *testing.T) {
	network := backstaytest.NewNetwork()
	s := backstaytest.NewServer(t, nil, &backstaytest.ServerConfig{Network: network, Protocol: backstaytest.HTTP1TLS})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.Addr, nil)
	require.NoError(t, err)
	attempt{}.check(t, network.Transport(), req) // net/http's server answers 400
}

func TestConnectionsThatBreakMayHaveBeenActedOn(t *testing.T) {
	want := attempt{class: outcome.Failure, retry: outcome.IfIdempotent}
	for _, p := range []backstaytest.Protocol{backstaytest.HTTP1, backstaytest.HTTP1TLS, backstaytest.HTTP2, backstaytest.H2C} {
		t.Run("reset before headers over "+p.String(), func(t *testing.T) {
			fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Protocol: p})
			fleet.Server(0).ResetBeforeHeaders()
			tr := fleet.Transport()
			if tr.TLSClientConfig != nil {
				tr.TLSClientConfig.ServerName = fleet.Service
			}
			want.check(t, tr, request(t, "POST", fleet.Server(0).URL(), "x"))
			require.Equal(t, 1, fleet.Stats().Requests)
		})
	}
	for name, answer := range map[string]string{
		"closed before headers":  "",
		"closed in the status":   "HTTP/1.1 200",
		"closed in the headers":  "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Ty",
		"not HTTP":               "220 mail.test ESMTP\r\n\r\n",
		"garbled content length": "HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello",
	} {
		t.Run(name, func(t *testing.T) {
			url := raw(t, func(c net.Conn) {
				readRequest(c)
				_, _ = io.WriteString(c, answer)
			})
			want.check(t, newTransport(t), request(t, "POST", url, "x"))
		})
	}
	t.Run("reset in the headers", func(t *testing.T) {
		url := raw(t, func(c net.Conn) {
			readRequest(c)
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-")
			_ = c.(*net.TCPConn).SetLinger(0)
		})
		want.check(t, newTransport(t), request(t, "POST", url, "x"))
	})
	t.Run("kept alive and closed while the request was sent", func(t *testing.T) {
		var served atomic.Int32
		url := raw(t, func(c net.Conn) {
			readRequest(c)
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			readRequest(c)
			served.Add(1)
		})
		tr := newTransport(t)
		attempt{}.check(t, tr, request(t, "POST", url, "x"))
		want.check(t, tr, request(t, "POST", url, "x"))
		require.Equal(t, int32(1), served.Load())
	})
}

func TestTimeoutsOfTheNetworkAreThePeersFault(t *testing.T) {
	want := attempt{class: outcome.Failure, retry: outcome.IfIdempotent}
	t.Run("no header in time", func(t *testing.T) {
		s := backstaytest.NewFleet(t, 1, nil).Server(0)
		s.Stall()
		tr := s.Transport()
		tr.ResponseHeaderTimeout = time.Millisecond
		want.check(t, tr, request(t, "POST", s.URL(), "x"))
	})
	t.Run("no TLS handshake in time", func(t *testing.T) {
		fleet := backstaytest.NewFleet(t, 1, &backstaytest.FleetConfig{Protocol: backstaytest.HTTP1TLS})
		fleet.Server(0).Freeze()
		tr := fleet.Transport()
		tr.TLSHandshakeTimeout = time.Millisecond
		want.check(t, tr, request(t, "POST", fleet.Server(0).URL(), "x"))
	})
}

func TestCallersEndIsNeutral(t *testing.T) {
	want := attempt{class: outcome.Neutral, retry: outcome.Never}
	gone := errors.New("the user closed the tab")
	stalled := backstaytest.NewFleet(t, 1, nil).Server(0)
	stalled.Stall()
	network := backstaytest.NewNetwork()
	network.Blackhole("orders.test:80", true)

	send := func(t *testing.T, ctx context.Context, rt http.RoundTripper, url string, want attempt) {
		want.check(t, rt, request(t, "GET", url, "").WithContext(ctx))
	}
	deadline := func(t *testing.T) context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	cancelled := func(t *testing.T, cause error) context.Context {
		ctx, cancel := context.WithCancelCause(t.Context())
		timer := time.AfterFunc(5*time.Millisecond, func() { cancel(cause) })
		t.Cleanup(func() { timer.Stop(); cancel(nil) })
		return ctx
	}
	t.Run("deadline while awaiting headers", func(t *testing.T) { send(t, deadline(t), stalled.Transport(), stalled.URL(), want) })
	t.Run("cancel while awaiting headers", func(t *testing.T) { send(t, cancelled(t, nil), stalled.Transport(), stalled.URL(), want) })
	t.Run("cancel with a cause", func(t *testing.T) { send(t, cancelled(t, gone), stalled.Transport(), stalled.URL(), want) })
	t.Run("cancelled before", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		send(t, ctx, stalled.Transport(), stalled.URL(), want)
	})
	t.Run("deadline while dialing", func(t *testing.T) {
		tr := network.Transport()
		send(t, deadline(t), tr, "http://orders.test", want)
	})
	t.Run("client timeout", func(t *testing.T) {
		rt := stalled.Transport()
		var below outcome.Outcome
		client := &http.Client{Timeout: 5 * time.Millisecond, Transport: roundTripper(func(req *http.Request) (*http.Response, error) {
			resp, err := rt.RoundTrip(req)
			below = outcome.HTTP(req, resp, err)
			return resp, err
		})}
		// It ends the request's context and closes its Cancel channel at the
		// same time; net/http's error then says which it saw first, and the
		// latter's has no type.
		for range 20 {
			_, err := client.Get(stalled.URL())
			require.Error(t, err)
			require.Equal(t, outcome.Neutral, below.Class, "class of %v", below.Err)
			require.Equal(t, outcome.Never, below.Retry)
		}
	})
	t.Run("Request.Cancel", func(t *testing.T) {
		req := request(t, "GET", stalled.URL(), "")
		gone := make(chan struct{})
		req.Cancel = gone //nolint:staticcheck // deprecated, and still honoured by net/http
		time.AfterFunc(5*time.Millisecond, func() { close(gone) })
		want.check(t, stalled.Transport(), req)
	})
	t.Run("not Request.Cancel while it is open", func(t *testing.T) {
		dead := backstaytest.NewFleet(t, 1, nil).Server(0)
		dead.Kill()
		req := request(t, "GET", dead.URL(), "")
		req.Cancel = make(chan struct{}) //nolint:staticcheck // as above
		attempt{outcome.Failure, outcome.Always, true}.check(t, dead.Transport(), req)
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func TestRequestsThatNoTransportSendsAreNeutral(t *testing.T) {
	s := backstaytest.NewFleet(t, 1, nil).Server(0)
	for name, spoil := range map[string]func(*http.Request){
		"no URL":                    func(r *http.Request) { r.URL = nil },
		"no host":                   func(r *http.Request) { r.URL.Host = "" },
		"unsupported scheme":        func(r *http.Request) { r.URL.Scheme = "gopher" },
		"no scheme":                 func(r *http.Request) { r.URL.Scheme = "" },
		"method with a space":       func(r *http.Request) { r.Method = "GET IT" },
		"header name with a space":  func(r *http.Request) { r.Header["Bad Name"] = []string{"x"} },
		"header value with newline": func(r *http.Request) { r.Header["X-Bad"] = []string{"a\r\nb: c"} },
		"no header":                 func(r *http.Request) { r.Header = nil },
		"length without a body":     func(r *http.Request) { r.Body, r.ContentLength = nil, 7 },
	} {
		t.Run(name, func(t *testing.T) {
			req := request(t, "GET", s.URL(), "")
			spoil(req)
			attempt{class: outcome.Neutral, retry: outcome.Never}.check(t, s.Transport(), req)
		})
	}
	require.Zero(t, s.Stats().Requests)
}

// h2 answers every stream of HTTP/2 connections with prior knowledge by f.
func h2(l net.Listener, f func(fr *http2.Framer, stream uint32)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = c.Close() }()
			if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
				return
			}
			fr := http2.NewFramer(c, c)
			_ = fr.WriteSettings()
			for {
				frame, err := fr.ReadFrame()
				if err != nil {
					return
				}
				switch frame := frame.(type) {
				case *http2.SettingsFrame:
					if !frame.IsAck() {
						_ = fr.WriteSettingsAck()
					}
				case *http2.HeadersFrame:
					f(fr, frame.StreamID)
				}
			}
		}()
	}
}

func TestStreamErrorsOfHTTP2(t *testing.T) {
	for _, test := range []struct {
		code http2.ErrCode
		want attempt
	}{
		{http2.ErrCodeRefusedStream, attempt{class: outcome.Failure, retry: outcome.Always}},
		{http2.ErrCodeInternal, attempt{class: outcome.Failure, retry: outcome.IfIdempotent}},
		{http2.ErrCodeEnhanceYourCalm, attempt{class: outcome.Failure, retry: outcome.IfIdempotent}},
		{http2.ErrCodeCancel, attempt{class: outcome.Failure, retry: outcome.IfIdempotent}},
	} {
		t.Run(test.code.String(), func(t *testing.T) {
			// In a bubble: net/http itself retries a refused stream, with up to
			// half a minute of backoff, before it hands on the error.
			synctest.Test(t, func(t *testing.T) {
				network := backstaytest.NewNetwork()
				l, err := network.Listen("orders.test:80")
				require.NoError(t, err)
				defer func() { _ = l.Close() }()
				go h2(l, func(fr *http2.Framer, stream uint32) { _ = fr.WriteRSTStream(stream, test.code) })
				tr := network.Transport()
				defer tr.CloseIdleConnections()
				tr.Protocols = new(http.Protocols)
				tr.Protocols.SetUnencryptedHTTP2(true)
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://orders.test", http.NoBody)
				require.NoError(t, err)
				test.want.check(t, tr, req)
			})
		})
	}
}

func TestBodyThatFailsIsTheCallersOwnFault(t *testing.T) {
	boom := errors.New("disk on fire")
	s := backstaytest.NewFleet(t, 1, nil).Server(0)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, s.URL(), failing{&outcome.BodyError{Err: boom}})
	require.NoError(t, err)
	attempt{class: outcome.Neutral, retry: outcome.Never}.check(t, s.Transport(), req)
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
