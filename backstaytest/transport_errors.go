package backstaytest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
)

func errorChecks() []check {
	return []check{
		{"errors keep their identity", errorsKept, fakes},
		{"errors of real networks keep their identity", errorsReal, 0},
		{"errors do not tell secrets", errorsDiscreet, fakes},
		{"panic passes through", panicPasses, fakes},
		{"Goexit passes through", goexitPasses, fakes},
	}
}

var errSentinel = errors.New("backstaytest: a transport's own error")

func errorsKept(t *trial) {
	for _, want := range []error{errSentinel, io.ErrUnexpectedEOF, errReset(), &net.DNSError{Err: "no such host", Name: "orders.test", IsNotFound: true}} {
		f := t.fake(func(int, *sent) (*http.Response, error) { return nil, want })
		rt := t.wrap(f)
		t.fails(rt, t.request(t.Context(), http.MethodGet, "http://orders.test/", nil), want)
		rt = t.wrap(f)
		resp, err := (&http.Client{Transport: rt}).Do(t.request(t.Context(), http.MethodGet, "http://orders.test/", nil))
		if err == nil {
			_ = resp.Body.Close()
		}
		var dressed *url.Error
		if !errors.As(err, &dressed) || !errors.Is(err, want) {
			t.Errorf("http.Client's error is %v, want a *url.Error that is %v", err, want)
		}
	}
}

func errorsReal(t *trial) {
	s := t.serve(HTTP1TLS, answerOK)
	distrustful := t.plain()
	distrustful.TLSClientConfig = &tls.Config{RootCAs: x509.NewCertPool()}
	_, err := t.do(t.wrap(distrustful), t.request(t.Context(), http.MethodGet, s.URL(), nil))
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); !ok {
		t.Errorf("the error of an unknown certificate is %v, want a *tls.CertificateVerificationError", err)
	}
	equal(t, "the number of requests to a server whose certificate is unknown", s.Stats().Requests, 0)

	s = t.serve(HTTP1, answerOK)
	s.Kill()
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		body := newCallersBody("hello")
		err = t.failure(t.wrap(t.plain()), t.request(t.Context(), method, s.URL(), body), syscall.ECONNREFUSED)
		if _, ok := errors.AsType[*net.OpError](err); !ok {
			t.Errorf("the error of a refused connection is %v, want a *net.OpError", err)
		}
		body.closedOnce(t, anyTimes)
	}
}

func errorsDiscreet(t *trial) {
	for name, fail := range map[string]error{"an error": errSentinel, "a timeout": os.ErrDeadlineExceeded, "a dial": &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}} {
		f := t.fake(func(int, *sent) (*http.Response, error) { return nil, fail })
		req := t.request(t.Context(), http.MethodGet, "http://user:s3cret@orders.test/?token=s3cret", nil)
		req.Header.Set("Authorization", "Bearer s3cret")
		_, err := t.do(t.wrap(f), req)
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("what the layer makes of %s tells the request's secrets: %v", name, err)
		}
	}
}

func panicPasses(t *trial) {
	thrown := &struct{ why string }{"a bug in the transport"}
	f := t.fake(func(int, *sent) (*http.Response, error) { panic(thrown) }) //nolint:forbidigo // what is tested
	t.survives(f, func(r result) {
		if r.panicked != any(thrown) {
			t.Errorf("after a panic of the transport, RoundTrip's is %v (error %v), want the very value", r.panicked, r.err)
		}
	})
}

func goexitPasses(t *trial) {
	f := t.fake(func(int, *sent) (*http.Response, error) {
		runtime.Goexit()
		return nil, nil
	})
	t.survives(f, func(r result) {
		if !r.exited {
			t.Errorf("after a Goexit of the transport, RoundTrip returned %v, %v (panic %v)", r.resp, r.err, r.panicked)
		}
	})
}

// survives makes calls that end in an unusual way, and then one that does not:
// what the layer holds for a call must be free again.
func (t *trial) survives(f *fake, look func(result)) {
	t.Helper()
	rt := t.wrap(f)
	parent := newLongLived()
	var unusual atomic.Int32
	answer := f.answer
	f.answer = func(n int, s *sent) (*http.Response, error) {
		unusual.Add(1)
		return answer(n, s)
	}
	for range 30 {
		body := newCallersBody("hello")
		before := unusual.Load()
		r := t.end(t.begin(rt, t.request(parent, http.MethodPost, "http://orders.test/", body)))
		if unusual.Load() == before { // a breaker, say, has seen enough
			if r.resp != nil {
				t.read(r.resp)
			}
			continue
		}
		look(r)
		body.closedOnce(t, 1)
	}
	if unusual.Load() == 0 {
		t.Errorf("nothing reached the transport")
	}
	t.eventually("the contexts derived from the caller's were not released", func() bool { return parent.children() == 0 })
	f.answer = nil
	ctx, cancel := context.WithTimeout(t.Context(), t.opts.Patience)
	defer cancel()
	if resp, err := t.do(rt, t.request(ctx, http.MethodGet, "http://orders.test/", nil)); err == nil {
		t.read(resp)
	} else if errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the layer is stuck after calls that ended in an unusual way: %v", err)
	}
}
