package balancer_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
	"github.com/backstay/backstay/event"
)

// authority issues certificates as PEM, as they are found in files.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	a := &authority{t: t}
	a.pem, _ = a.issue(name)
	return a
}

// issue returns a certificate for a name and its key; the first is the authority's.
func (a *authority) issue(name string) (cert, key []byte) {
	a.t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a.t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
		BasicConstraintsValid: true,
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign
		parent, signer = template, k
	} else {
		template.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &k.PublicKey, signer)
	require.NoError(a.t, err)
	if a.cert == nil {
		a.cert, err = x509.ParseCertificate(der)
		require.NoError(a.t, err)
		a.key = k
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	require.NoError(a.t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

func pool(t testing.TB, bundles ...[]byte) *x509.CertPool {
	t.Helper()
	p := x509.NewCertPool()
	for _, b := range bundles {
		require.True(t, p.AppendCertsFromPEM(b))
	}
	return p
}

// tlsRig is a server whose side of TLS the test changes, and the client's files.
type tlsRig struct {
	t      testing.TB
	dir    string
	files  balancer.TLSFiles
	side   atomic.Pointer[tls.Config]
	server *httptest.Server
	rec    backstaytest.Recorder

	mu      sync.Mutex
	clients map[string]int // calls by the client certificate's name
	resumed int
}

func newTLSRig(t testing.TB) *tlsRig {
	t.Helper()
	r := &tlsRig{t: t, dir: t.TempDir(), clients: make(map[string]int)}
	r.files = balancer.TLSFiles{
		CertFile: filepath.Join(r.dir, "tls.crt"), KeyFile: filepath.Join(r.dir, "tls.key"), CAFile: filepath.Join(r.dir, "ca.crt"),
		Interval: -1, Observer: &r.rec,
	}
	r.server = httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.clients[req.TLS.PeerCertificates[0].Subject.CommonName]++
		if req.TLS.DidResume {
			r.resumed++
		}
	}))
	r.server.EnableHTTP2 = true
	r.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // of connections that were closed before their first use
	r.server.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return r.side.Load(), nil }}
	return r
}

func (r *tlsRig) start() {
	r.server.StartTLS()
	r.t.Cleanup(r.server.Close)
}

// serve sets the server's certificate and whom it trusts.
func (r *tlsRig) serve(by *authority, trusts ...[]byte) {
	r.t.Helper()
	pair, err := tls.X509KeyPair(by.issue("orders.test"))
	require.NoError(r.t, err)
	r.side.Store(&tls.Config{
		Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool(r.t, trusts...),
		NextProtos: []string{"h2", "http/1.1"},
	})
}

func (r *tlsRig) write(name string, data []byte) {
	r.t.Helper()
	require.NoError(r.t, os.WriteFile(filepath.Join(r.dir, name), data, 0o600))
}

func (r *tlsRig) client(by *authority, name string) {
	r.t.Helper()
	cert, key := by.issue(name)
	r.write("tls.crt", cert)
	r.write("tls.key", key)
}

func (r *tlsRig) balancer(cfg balancer.Config) http.RoundTripper {
	r.t.Helper()
	client, err := r.files.Config()
	require.NoError(r.t, err)
	b, err := balancer.New("orders.test", discovery.Static(discovery.Endpoint{Addr: r.server.Listener.Addr().String()}), unhurried(cfg))
	require.NoError(r.t, err)
	r.t.Cleanup(func() { require.NoError(r.t, b.Close()) })
	return b.Layer(&http.Transport{TLSClientConfig: client, ForceAttemptHTTP2: true})
}

func (r *tlsRig) calls(client string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.clients[client]
}

func TestRotationOfAllCertificatesUnderLoadLosesNoCall(t *testing.T) {
	for name, conns := range map[string]balancer.ConnConfig{
		"by age": {MaxAge: 20 * time.Millisecond}, "with connections ahead": {MaxAge: 20 * time.Millisecond, Min: 2},
	} {
		t.Run(name, func(t *testing.T) {
			backstaytest.CheckLeaks(t)
			older, newer := newAuthority(t, "older"), newAuthority(t, "newer")
			both := bytes.Join([][]byte{older.pem, newer.pem}, nil)
			r := newTLSRig(t)
			r.serve(older, both)
			r.start()
			r.write("ca.crt", older.pem)
			r.client(older, "first")
			rt := r.balancer(balancer.Config{Conns: conns})
			stop := make(chan struct{})
			var wg sync.WaitGroup
			defer wg.Wait()
			stopped := sync.OnceFunc(func() { close(stop) })
			defer stopped()
			for range 8 {
				wg.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
						}
						req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://orders.test/", once("hello"))
						if err != nil {
							t.Error(err)
							return
						}
						resp, err := rt.RoundTrip(req)
						if err != nil {
							t.Error(err)
							return
						}
						if resp.ProtoMajor != 2 {
							t.Error("the protocol is", resp.Proto)
						}
						_, _ = io.Copy(io.Discard, resp.Body)
						_ = resp.Body.Close()
					}
				})
			}
			more := func(client string) {
				t.Helper()
				from := r.calls(client)
				eventually(t, func() bool { return r.calls(client) > from+200 || t.Failed() }, "no calls by %s", client)
			}
			more("first")
			r.write("ca.crt", both)
			more("first")
			eventually(t, func() bool { return len(backstaytest.EventsOf[balancer.TLSReloaded](&r.rec)) > 0 }, "nobody has noticed")
			r.serve(newer, both)
			more("first")
			r.client(newer, "second")
			more("second")
			more("second")
			r.serve(newer, newer.pem)
			r.write("ca.crt", newer.pem)
			more("second")
			stopped()
			wg.Wait()
		})
	}
}

func TestFilesThatAreOfNoUseLeaveTheLastInUse(t *testing.T) {
	one, other := newAuthority(t, "one"), newAuthority(t, "other")
	r := newTLSRig(t)
	r.serve(one, one.pem)
	r.start()
	r.write("ca.crt", one.pem)
	r.client(one, "first")
	rt := r.balancer(balancer.Config{})
	call := func() error {
		rt.(interface{ CloseIdleConnections() }).CloseIdleConnections()
		resp, err := getFrom(t, rt, "https://orders.test/")
		if err == nil {
			read(t, resp)
		}
		return err
	}
	require.NoError(t, call())
	good, err := os.ReadFile(r.files.CertFile)
	require.NoError(t, err)
	for name, c := range map[string]struct {
		file string
		data []byte
	}{
		"half a certificate":         {"tls.crt", good[:len(good)/2]},
		"a chain cut in its second":  {"tls.crt", append(bytes.Clone(good), one.pem[:len(one.pem)/2]...)},
		"a chain cut in a marker":    {"tls.crt", append(bytes.Clone(good), "-----BEGIN CERT"...)},
		"a bundle cut in the second": {"ca.crt", append(bytes.Clone(one.pem), other.pem[:len(other.pem)/2]...)},
		"a bundle cut in the first":  {"ca.crt", append(bytes.Clone(other.pem[:len(other.pem)/2]), one.pem...)},
		"not a certificate":          {"ca.crt", append(bytes.Clone(one.pem), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})...)},
		"another's key":              {"tls.key", func() []byte { _, key := one.issue("x"); return key }()},
		"no authority":               {"ca.crt", []byte("nothing")},
		"an empty file":              {"ca.crt", nil},
		"a file that is not there":   {"ca.crt", []byte("remove")},
		"a directory in its place ":  {"tls.key", []byte("directory")},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(r.dir, c.file)
			before, err := os.ReadFile(path)
			require.NoError(t, err)
			r.rec.Clear()
			switch string(c.data) {
			case "remove":
				require.NoError(t, os.Remove(path))
			case "directory":
				require.NoError(t, os.Remove(path))
				require.NoError(t, os.Mkdir(path, 0o700))
			default:
				r.write(c.file, c.data)
			}
			for range 3 {
				require.NoError(t, call())
			}
			require.Equal(t, []string{"balancer.tls_reload_failed"}, r.rec.Names(), "once")
			require.ErrorContains(t, r.rec.Events()[0].(balancer.TLSReloadFailed).Err, path)
			require.NoError(t, os.RemoveAll(path))
			require.NoError(t, os.WriteFile(path, before, 0o600))
			require.NoError(t, call())
		})
	}
	r.rec.Clear()
	r.write("ca.crt", other.pem)
	var verification *tls.CertificateVerificationError
	require.ErrorAs(t, call(), &verification, "what is of use is used")
	require.Equal(t, []string{"balancer.tls_reloaded"}, r.rec.Names())
}

// As Kubernetes does it with the files of a secret.
func TestSwappedLinksAreNoticed(t *testing.T) {
	one := newAuthority(t, "one")
	r := newTLSRig(t)
	r.serve(one, one.pem)
	r.start()
	dir := r.dir
	for _, name := range []string{"first", "second"} {
		r.dir = filepath.Join(dir, name)
		require.NoError(t, os.Mkdir(r.dir, 0o700))
		r.write("ca.crt", one.pem)
		r.client(one, name)
	}
	link := func(to string) {
		require.NoError(t, os.Symlink(to, filepath.Join(dir, "next")))
		require.NoError(t, os.Rename(filepath.Join(dir, "next"), filepath.Join(dir, "data")))
	}
	for _, path := range []*string{&r.files.CertFile, &r.files.KeyFile, &r.files.CAFile} {
		*path = filepath.Join(dir, "data", filepath.Base(*path))
	}
	link("first")
	rt := r.balancer(balancer.Config{})
	for _, name := range []string{"first", "second", "first"} {
		link(name)
		rt.(interface{ CloseIdleConnections() }).CloseIdleConnections()
		before := r.calls(name)
		resp, err := getFrom(t, rt, "https://orders.test/")
		require.NoError(t, err)
		read(t, resp)
		require.Equal(t, before+1, r.calls(name), "sessions of another identity are not resumed")
	}
}

func TestSessionsAreResumed(t *testing.T) {
	one := newAuthority(t, "one")
	r := newTLSRig(t)
	r.serve(one, one.pem)
	r.start()
	r.write("ca.crt", one.pem)
	r.client(one, "first")
	rt := r.balancer(balancer.Config{Conns: balancer.ConnConfig{MaxRequests: 1}})
	for range 10 {
		resp, err := getFrom(t, rt, "https://orders.test/")
		require.NoError(t, err)
		read(t, resp)
	}
	require.Positive(t, r.resumed)
}

// dial opens a connection of its own; its call returns after the session that the
// server has sent was read.
func (r *tlsRig) dial(cfg *tls.Config) (conn *tls.Conn, call func()) {
	r.t.Helper()
	cfg = cfg.Clone()
	cfg.ServerName = "orders.test"
	conn, err := tls.Dial("tcp", r.server.Listener.Addr().String(), cfg)
	require.NoError(r.t, err)
	return conn, func() {
		r.t.Helper()
		_, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: orders.test\r\nConnection: close\r\n\r\n")
		require.NoError(r.t, err)
		_, _ = io.Copy(io.Discard, conn)
		_ = conn.Close()
	}
}

func TestSessionThatComesAfterAChangeOfFilesIsNotResumed(t *testing.T) {
	change := map[string]func(r *tlsRig, a *authority){
		"of the certificate": func(r *tlsRig, a *authority) { r.client(a, "second") },
		"of the authorities": func(r *tlsRig, a *authority) { r.write("ca.crt", append(bytes.Clone(a.pem), a.pem...)) },
	}
	for name, change := range change {
		t.Run(name, func(t *testing.T) {
			one := newAuthority(t, "one")
			r := newTLSRig(t)
			r.serve(one, one.pem)
			r.start()
			r.write("ca.crt", one.pem)
			r.client(one, "first")
			cfg, err := r.files.Config()
			require.NoError(t, err)

			_, call := r.dial(cfg) // what the server sends after the handshake is not read yet
			change(r, one)
			_, err = cfg.GetClientCertificate(nil)
			require.NoError(t, err)
			require.Equal(t, []string{"balancer.tls_reloaded"}, r.rec.Names())
			runtime.GC() // an open connection is no garbage
			runtime.GC()
			call()
			conn, call := r.dial(cfg)
			require.False(t, conn.ConnectionState().DidResume)
			call()

			eventually(t, func() bool {
				runtime.GC() // a closed one is
				conn, call := r.dial(cfg)
				call()
				return conn.ConnectionState().DidResume
			}, "no session of the present files is resumed")
			if name == "of the certificate" {
				require.Equal(t, 1, r.calls("first"))
			}
		})
	}
}

func TestConnectionThatResumesWhileFilesChangeLeavesNoSession(t *testing.T) {
	one := newAuthority(t, "one")
	r := newTLSRig(t)
	r.serve(one, one.pem)
	var meanwhile func()
	side := r.side.Load()
	side.WrapSession = side.EncryptTicket
	side.UnwrapSession = func(ticket []byte, s tls.ConnectionState) (*tls.SessionState, error) {
		meanwhile()
		return side.DecryptTicket(ticket, s)
	}
	r.start()
	r.write("ca.crt", one.pem)
	r.client(one, "first")
	cfg, err := r.files.Config()
	require.NoError(t, err)
	_, call := r.dial(cfg)
	call()

	cert, key := one.issue("second")
	meanwhile = func() {
		for name, data := range map[string][]byte{r.files.CertFile: cert, r.files.KeyFile: key} {
			if err := os.WriteFile(name, data, 0o600); err != nil {
				t.Error(err)
			}
		}
	}
	conn, call := r.dial(cfg)
	require.True(t, conn.ConnectionState().DidResume, "it began before the change")
	require.Equal(t, []string{"balancer.tls_reloaded"}, r.rec.Names(), "and ended after it")
	runtime.GC()
	runtime.GC()
	call()
	require.Equal(t, 2, r.calls("first"))
	conn, call = r.dial(cfg)
	require.False(t, conn.ConnectionState().DidResume)
	call()
	require.Equal(t, 1, r.calls("second"))
}

// Each half, read while the other was not written yet, looks whole.
func TestFilesThatAreBeingWrittenAreReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, other := newAuthority(t, "one"), newAuthority(t, "other")
		var rec backstaytest.Recorder
		files := balancer.TLSFiles{CertFile: filepath.Join(t.TempDir(), "all.pem"), Interval: time.Minute, Observer: &rec}
		files.KeyFile = files.CertFile
		write := func(parts ...[]byte) {
			require.NoError(t, os.WriteFile(files.CertFile, bytes.Join(parts, nil), 0o600))
		}
		first, firstKey := one.issue("first")
		second, secondKey := one.issue("second")
		write(firstKey, first, one.pem)
		cfg, err := files.Config()
		require.NoError(t, err)
		chain := func() (string, int) {
			cert, err := cfg.GetClientCertificate(nil)
			require.NoError(t, err)
			return cert.Leaf.Subject.CommonName, len(cert.Certificate)
		}
		time.Sleep(time.Minute)
		write(secondKey, second)
		time.AfterFunc(time.Millisecond, func() { write(secondKey, second, one.pem, other.pem) })
		name, n := chain()
		require.Equal(t, "first", name)
		require.Equal(t, 2, n)
		require.Empty(t, rec.Names())
		name, n = chain()
		require.Equal(t, "second", name, "the next handshake does not wait for the interval")
		require.Equal(t, 3, n)
		require.Equal(t, []string{"balancer.tls_reloaded"}, rec.Names())
	})
}

func TestServersAreVerifiedByTheFilesAuthorities(t *testing.T) {
	one, other := newAuthority(t, "one"), newAuthority(t, "other")
	r := newTLSRig(t)
	r.serve(other, one.pem)
	r.start()
	r.write("ca.crt", one.pem)
	r.client(one, "first")
	var verification *tls.CertificateVerificationError
	var authority x509.UnknownAuthorityError
	_, err := getFrom(t, r.balancer(balancer.Config{}), "https://orders.test/")
	require.ErrorAs(t, err, &verification)
	require.ErrorAs(t, err, &authority)

	// Not good for the name, and no name to be good for.
	r.serve(one, one.pem)
	_, port, _ := strings.Cut(r.server.Listener.Addr().String(), ":")
	for host, as := range map[string]any{"localhost": &verification, "127.0.0.1": nil} {
		cfg, err := r.files.Config()
		require.NoError(t, err)
		tr := &http.Transport{TLSClientConfig: cfg}
		_, err = getFrom(t, tr, "https://"+host+":"+port)
		require.Error(t, err)
		if as != nil {
			require.ErrorAs(t, err, as)
		} else {
			require.ErrorContains(t, err, "no name")
		}
	}
	require.Zero(t, r.calls("first"))
}

func TestTLSFilesAreReadNoOftenerThanTheInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := newAuthority(t, "one")
		dir := t.TempDir()
		var names []string
		files := balancer.TLSFiles{
			CAFile: filepath.Join(dir, "ca.crt"), CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key"),
			Observer: event.ObserverFunc(func(_ context.Context, e event.Event) { names = append(names, e.EventName()) }),
		}
		issue := func(name string) {
			cert, key := one.issue(name)
			require.NoError(t, os.WriteFile(files.CertFile, cert, 0o600))
			require.NoError(t, os.WriteFile(files.KeyFile, key, 0o600))
		}
		require.NoError(t, os.WriteFile(files.CAFile, one.pem, 0o600))
		issue("first")
		cfg, err := files.Config()
		require.NoError(t, err)
		current := func() string {
			cert, err := cfg.GetClientCertificate(nil)
			require.NoError(t, err)
			return cert.Leaf.Subject.CommonName
		}
		issue("second")
		time.Sleep(10*time.Second - 1)
		require.Equal(t, "first", current())
		time.Sleep(1)
		require.Equal(t, "second", current())
		time.Sleep(time.Hour)
		require.Equal(t, "second", current())
		require.Equal(t, []string{"balancer.tls_reloaded"}, names)
	})
}

func TestTLSFilesThatAreOfNoUseAtFirstAreAnError(t *testing.T) {
	dir := t.TempDir()
	for want, files := range map[string]balancer.TLSFiles{
		`balancer: TLSFiles.CertFile is "x" and KeyFile "", want both or none`:   {CertFile: "x"},
		`balancer: TLSFiles.CAFile is "", want a file where CertFile is none`:    {},
		"balancer: TLSFiles: open " + dir + "/absent: no such file or directory": {CAFile: dir + "/absent"},
	} {
		_, err := files.Config()
		require.EqualError(t, err, want)
	}
}
