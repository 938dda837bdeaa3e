package balancer

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/backstay/backstay/event"
	"github.com/backstay/backstay/internal/clock"
	"github.com/backstay/backstay/internal/inherit"
)

// TLSFiles names the files that a client's certificate and the authorities it
// trusts are read from, again and again while it runs, as they are rotated by
// cert-manager, SPIFFE helpers and the like. Files are told apart by what is in
// them, so that symbolic links may be swapped.
type TLSFiles struct {
	// CertFile and KeyFile are the client's certificate, with its chain, and its
	// key, in PEM. Default: none, which is TLS without a client certificate.
	CertFile string `json:"certFile,omitempty"`
	KeyFile  string `json:"keyFile,omitempty"`
	// CAFile is the certificates of the authorities that servers are trusted by,
	// in PEM. Default: the system's authorities.
	CAFile string `json:"caFile,omitempty"`
	// Interval is how long what was read holds; the first handshake after that
	// reads the files again. Negative: each handshake does. Default: 10s.
	Interval time.Duration `json:"interval,omitempty"`
	// Observer sees a [TLSReloaded] for each change of the files and a
	// [TLSReloadFailed] for each that is of no use. Default: none.
	Observer event.Observer `json:"-"`
}

// Config reads the files and returns a TLS configuration for the TLSClientConfig
// of a template. It is an error if they are of no use now; later, when one is
// missing, half written or does not fit the others, what was read last stays in
// use. A file is half written if a PEM block in it has no end or a certificate in
// it cannot be parsed. What ends between two blocks looks whole, so what has
// changed is read again 10ms later, and used when it is still the same: a file
// that takes longer to write is to be renamed into its place.
//
// Sessions are resumed across all nodes of a service, and none of those that began
// with other files. As a server may send a connection a session at any time, and
// crypto/tls does not tell of which connection one is, no new ones are kept after
// a change until the connections from before it are closed and garbage collected:
// until then handshakes are full ones.
//
// New files concern new connections: those that stand go on, for as long as
// [ConnConfig].MaxAge lets them.
//
// With a CAFile the configuration has InsecureSkipVerify set and verifies servers
// in VerifyConnection, for that is how crypto/tls lets authorities change while it
// runs. Both fields have to stay, VerifyConnection also without a CAFile, as it
// tells sessions apart. With a CAFile the server's name has to be one and not an
// IP address, where ServerName does not give one.
//
// Like each configuration of one's own it switches HTTP/2 off in net/http, unless
// the template asks for it by ForceAttemptHTTP2 or Protocols.
func (f TLSFiles) Config() (*tls.Config, error) {
	var errs []error
	if (f.CertFile == "") != (f.KeyFile == "") {
		errs = append(errs, fmt.Errorf("balancer: TLSFiles.CertFile is %q and KeyFile %q, want both or none", f.CertFile, f.KeyFile))
	}
	if f.CertFile == "" && f.CAFile == "" {
		errs = append(errs, errors.New(`balancer: TLSFiles.CAFile is "", want a file where CertFile is none`))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	f.Interval = inherit.Or(f.Interval, 10*time.Second)
	r := &tlsReloader{files: f, read: clock.Now(), conns: &tlsConns{of: make(map[int]int)}}
	var err error
	if r.seen, err = f.read(); err != nil {
		return nil, err
	}
	state, err := f.parse(r.seen)
	if err != nil {
		return nil, err
	}
	r.state.Store(state)
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ClientSessionCache: r}
	if f.CertFile != "" {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return r.current().cert, nil
		}
	}
	cfg.InsecureSkipVerify = f.CAFile != "" //nolint:gosec // VerifyConnection does it
	cfg.VerifyConnection = func(c tls.ConnectionState) error {
		s := r.current() // no newer than the certificate that the server is shown next
		r.conns.track(&c, s.number)
		if s.roots == nil {
			return nil
		}
		return s.verify(&c)
	}
	return cfg, nil
}

// tlsSettle is how long changed files have to be the same before they are used.
const tlsSettle = 10 * time.Millisecond

// tlsContents is what the files hold: certificate, key, authorities.
type tlsContents [3][]byte

func (f *TLSFiles) read() (c tlsContents, err error) {
	for i, name := range [...]string{f.CertFile, f.KeyFile, f.CAFile} {
		if name == "" {
			continue
		}
		data, e := os.ReadFile(name)
		if e != nil {
			err = errors.Join(err, fmt.Errorf("balancer: TLSFiles: %w", e))
		}
		c[i] = data
	}
	return c, err
}

func (f *TLSFiles) parse(c tlsContents) (*tlsState, error) {
	s := &tlsState{cert: new(tls.Certificate), sessions: tls.NewLRUClientSessionCache(0)}
	if f.CertFile != "" {
		pair, err := tls.X509KeyPair(c[0], c[1])
		if err == nil {
			_, err = parseCertificates(c[0]) // it is content with the first
		}
		if err != nil {
			return nil, fmt.Errorf("balancer: TLSFiles.CertFile %s and KeyFile %s: %w", f.CertFile, f.KeyFile, err)
		}
		s.cert = &pair
	}
	if f.CAFile != "" {
		certs, err := parseCertificates(c[2]) // AppendCertsFromPEM is content with one
		if err != nil {
			return nil, fmt.Errorf("balancer: TLSFiles.CAFile %s: %w", f.CAFile, err)
		}
		s.roots = x509.NewCertPool()
		for _, cert := range certs {
			s.roots.AddCert(cert)
		}
	}
	return s, nil
}

// parseCertificates returns the certificates in a PEM file, which are one at least
// and all that it has begun.
func parseCertificates(file []byte) (certs []*x509.Certificate, err error) {
	begun := bytes.Count(append([]byte("\n"), file...), []byte("\n-----BEGIN"))
	for block, rest := pem.Decode(file); block != nil; block, rest = pem.Decode(rest) {
		begun--
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
	if begun > 0 { // Decode skips what it cannot read
		return nil, errors.New("holds a PEM block that is cut or damaged")
	}
	if len(certs) == 0 {
		return nil, errors.New("holds no certificate")
	}
	return certs, nil
}

// tlsState is what was read last and was of use. It is immutable.
type tlsState struct {
	cert     *tls.Certificate
	roots    *x509.CertPool
	sessions tls.ClientSessionCache
	number   int // counts up from 0
}

// verify does what crypto/tls would, with the present authorities; also for a
// session that is resumed.
func (s *tlsState) verify(c *tls.ConnectionState) error {
	if c.ServerName == "" { // an IP address is none, and without a name anybody's certificate would do
		return errNoServerName
	}
	opts := x509.VerifyOptions{DNSName: c.ServerName, Roots: s.roots, Intermediates: x509.NewCertPool()}
	for _, cert := range c.PeerCertificates[1:] {
		opts.Intermediates.AddCert(cert)
	}
	if _, err := c.PeerCertificates[0].Verify(opts); err != nil {
		return &tls.CertificateVerificationError{UnverifiedCertificates: c.PeerCertificates, Err: err}
	}
	return nil
}

var errNoServerName = errors.New("balancer: TLSFiles: the server has no name to be verified, set TLSClientConfig.ServerName")

// tlsConns counts the connections that may still be sent a session. It is an object
// of its own because what it waits for must not be reachable from it, and states
// hold sessions.
type tlsConns struct {
	mu sync.Mutex
	of map[int]int // by the number of the state that they began with; none is 0
}

// track counts a connection until it is garbage. The slice of its certificates
// stands for it: crypto/tls makes it for a handshake, and connection and sessions
// hold on to it, as do connections that resume one of those. So one that resumes an
// old session while the files change counts as an old one too.
func (c *tlsConns) track(s *tls.ConnectionState, number int) {
	c.add(number, 1)
	runtime.AddCleanup(&s.PeerCertificates[0], func(number int) { c.add(number, -1) }, number)
}

func (c *tlsConns) add(number, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of[number] += n; c.of[number] == 0 {
		delete(c.of, number)
	}
}

// none is whether there are no connections but those of one state.
func (c *tlsConns) none(but int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for number := range c.of {
		if number != but {
			return false
		}
	}
	return true
}

// tlsReloader reads the files when a handshake finds that it is time.
type tlsReloader struct {
	files TLSFiles
	state atomic.Pointer[tlsState]
	conns *tlsConns

	mu     sync.Mutex // held while reading
	read   time.Time
	seen   tlsContents // of use or not
	failed string      // why the files could not be read, if so
	events event.Queue
}

// current returns the present state. Handshakes that come while another one reads
// the files do not wait for it.
func (r *tlsReloader) current() *tlsState {
	if r.mu.TryLock() {
		r.reload(clock.Now())
		r.mu.Unlock()
		r.events.Flush()
	}
	return r.state.Load()
}

// reload reads the files if it is time. r.mu is held.
func (r *tlsReloader) reload(now time.Time) {
	if now.Sub(r.read) < r.files.Interval {
		return
	}
	r.read = now
	seen, err := r.files.read()
	if err == nil && !seen.equal(&r.seen) {
		settle := time.NewTimer(tlsSettle) // so short that nobody need be able to end it
		<-settle.C
		first := seen
		if seen, err = r.files.read(); err == nil && !seen.equal(&first) {
			r.read = now.Add(-r.files.Interval) // somebody is writing: the next handshake looks again
			return
		}
	}
	var state *tlsState
	if err == nil {
		if r.failed == "" && seen.equal(&r.seen) {
			return
		}
		r.failed = ""
		state, err = r.files.parse(seen)
		if changed := !seen.equal(&r.seen); err == nil && !changed && r.state.Load() != nil {
			return // it was only away for a time
		}
		r.seen = seen
	} else {
		if err.Error() == r.failed {
			return
		}
		r.failed = err.Error()
	}
	if err != nil {
		r.events.Add(context.Background(), r.files.Observer, TLSReloadFailed{Err: err})
		return
	}
	state.number = r.state.Load().number + 1
	r.state.Store(state)
	e := TLSReloaded{}
	if leaf := state.cert.Leaf; leaf != nil {
		e.NotAfter = leaf.NotAfter
	}
	r.events.Add(context.Background(), r.files.Observer, e)
}

func (c *tlsContents) equal(other *tlsContents) bool {
	for i := range c {
		if !bytes.Equal(c[i], other[i]) {
			return false
		}
	}
	return true
}

// Get is a tls.ClientSessionCache's. A session bears the client's identity of its
// first handshake, so none outlives the files that it began with.
func (r *tlsReloader) Get(key string) (*tls.ClientSessionState, bool) {
	return r.current().sessions.Get(key)
}

// Put is a tls.ClientSessionCache's. In TLS 1.3 a session comes at any time after
// the handshake, so it may be one of a connection from before the present files.
func (r *tlsReloader) Put(key string, s *tls.ClientSessionState) {
	if state := r.state.Load(); s == nil || r.conns.none(state.number) {
		state.sessions.Put(key, s)
	}
}

// TLSReloaded is emitted when changed [TLSFiles] have come into use.
type TLSReloaded struct {
	// NotAfter is when the client's certificate expires; zero without one.
	NotAfter time.Time
}

// EventName is "balancer.tls_reloaded".
func (TLSReloaded) EventName() string { return "balancer.tls_reloaded" }

// LogValue holds the event's fields.
func (e TLSReloaded) LogValue() slog.Value {
	return slog.GroupValue(slog.Time("not_after", e.NotAfter))
}

// TLSReloadFailed is emitted when [TLSFiles] have changed and are of no use: one is
// missing, half written, or does not fit the others. What was read before stays in
// use.
type TLSReloadFailed struct {
	// Err says what is wrong.
	Err error
}

// EventName is "balancer.tls_reload_failed".
func (TLSReloadFailed) EventName() string { return "balancer.tls_reload_failed" }

// Level is Error: the certificate in use will expire.
func (TLSReloadFailed) Level() slog.Level { return slog.LevelError }

// LogValue holds the event's fields.
func (e TLSReloadFailed) LogValue() slog.Value { return slog.GroupValue(slog.Any("error", e.Err)) }
