package backstaytest

import (
	"crypto/tls"
	"net/http"
)

// Protocol is what a [Server] speaks.
type Protocol uint8

const (
	// HTTP1 is HTTP/1.1 over cleartext.
	HTTP1 Protocol = iota
	// HTTP1TLS is HTTP/1.1 over TLS.
	HTTP1TLS
	// HTTP2 is HTTP/2 over TLS, and HTTP/1.1 for those who do not offer it.
	HTTP2
	// H2C is HTTP/2 over cleartext with prior knowledge, and HTTP/1.1.
	H2C
)

// String returns the name that the field has for it.
func (p Protocol) String() string {
	return [...]string{"HTTP/1.1", "HTTP/1.1 over TLS", "HTTP/2", "h2c"}[p]
}

// secure reports whether p runs over TLS.
func (p Protocol) secure() bool { return p == HTTP1TLS || p == HTTP2 }

// protocols returns what net/http calls p, for servers.
func (p Protocol) protocols() *http.Protocols {
	var set http.Protocols
	set.SetHTTP1(true)
	set.SetHTTP2(p == HTTP2)
	set.SetUnencryptedHTTP2(p == H2C)
	return &set
}

// configure makes a transport speak p and trust the authority.
func (p Protocol) configure(tr *http.Transport, ca *Authority) {
	var set http.Protocols
	set.SetHTTP1(p != H2C) // with both, net/http uses HTTP/1.1 on cleartext
	set.SetHTTP2(p == HTTP2)
	set.SetUnencryptedHTTP2(p == H2C)
	tr.Protocols = &set
	if ca != nil {
		tr.TLSClientConfig = &tls.Config{RootCAs: ca.Pool()}
	}
}
