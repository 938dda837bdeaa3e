package balancer

import (
	"cmp"
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"sync/atomic"
)

// manyIdle stands for no limit on idle connections. A node's transport has one
// host only, and closing a connection that the last burst needed means opening
// it again at the next.
const manyIdle = 1 << 16

// dialFunc is the type of http.Transport.DialContext.
type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// fromTemplate returns a transport like t, for one node, whose connections are made
// by dial alone. t is not changed.
func fromTemplate(t *http.Transport, dial dialFunc, cfg *Config, serverName string) *http.Transport {
	http2 := speaksHTTP2(t) // before Clone, which prepares t for use and so changes it
	n := t.Clone()
	n.Proxy = nil // requests that a proxy applies to don't come here
	n.Dial = nil  //nolint:staticcheck // DialContext wins, but nobody should wonder
	n.DialContext = dial
	switch {
	case cfg.H2C:
		n.Protocols = new(http.Protocols)
		n.Protocols.SetUnencryptedHTTP2(true)
		n.Protocols.SetHTTP2(true)
	case n.Protocols != nil:
	case http2:
		// A dialer of one's own switches HTTP/2 off in net/http unless it is
		// asked for. And if the template's HTTP/2 came from x/net/http2, the
		// copied hook would put all nodes' connections into one pool, by the
		// service's name: the one that net/http brings takes its place.
		n.ForceAttemptHTTP2 = true
		n.TLSNextProto = nil
	}
	if n.MaxIdleConnsPerHost == 0 {
		n.MaxIdleConnsPerHost = manyIdle
		if t == http.DefaultTransport {
			n.MaxIdleConns = 0 // its limit is meant for all hosts together
		}
	}
	if cfg.Conns.Max > 0 {
		n.MaxConnsPerHost = cfg.Conns.Max
	}
	if cfg.Conns.PingInterval > 0 {
		if n.HTTP2 == nil {
			n.HTTP2 = new(http.HTTP2Config)
		}
		n.HTTP2.SendPingTimeout = cmp.Or(n.HTTP2.SendPingTimeout, cfg.Conns.PingInterval)
		n.HTTP2.PingTimeout = cmp.Or(n.HTTP2.PingTimeout, cfg.Conns.PingTimeout)
	}
	if serverName != "" {
		if n.TLSClientConfig == nil {
			n.TLSClientConfig = new(tls.Config)
		}
		n.TLSClientConfig.ServerName = serverName
	}
	return n
}

// dialer returns what makes connections for the template; nil if there is none.
func (l *transport) dialer() dialFunc {
	switch {
	case l.template == nil:
		return nil
	case l.template.DialContext != nil:
		return l.template.DialContext
	case l.template.Dial != nil: //nolint:staticcheck // whoever set it wants it used
		legacy := l.template.Dial //nolint:staticcheck // likewise
		return func(_ context.Context, network, addr string) (net.Conn, error) { return legacy(network, addr) }
	}
	return new(net.Dialer).DialContext
}

// speaksHTTP2 reports whether t would use HTTP/2 over TLS, by net/http's rules.
func speaksHTTP2(t *http.Transport) bool {
	if t.Protocols != nil {
		return t.Protocols.HTTP2()
	}
	if t.TLSNextProto != nil { // empty: switched off; after first use: filled in
		return t.TLSNextProto["h2"] != nil
	}
	custom := t.TLSClientConfig != nil || t.Dial != nil || t.DialContext != nil //nolint:staticcheck // net/http looks at Dial, too
	return t.ForceAttemptHTTP2 || !custom
}

// speaksHTTP1 reports whether t uses HTTP/1.1 without TLS, by net/http's rules.
func speaksHTTP1(t *http.Transport) bool { return t.Protocols == nil || t.Protocols.HTTP1() }

// opaque reports whether t makes connections in a way that cannot be had per
// node: by its own TLS dialer, or through a protocol somebody registered.
func opaque(t *http.Transport) bool {
	return t.DialTLSContext != nil || t.DialTLS != nil || hasRegisteredProtocol(t) //nolint:staticcheck // DialTLS still works
}

// hasRegisteredProtocol reports whether http.Transport.RegisterProtocol has been
// called for http or https, other than by an HTTP/2 implementation. There is no
// way to ask but to look; if the field should go, nothing is seen, and a
// protocol registered for "http" is passed by.
func hasRegisteredProtocol(t *http.Transport) bool {
	field := reflect.ValueOf(t).Elem().FieldByName("altProto")
	if !field.IsValid() || field.Type() != reflect.TypeFor[atomic.Value]() {
		return false
	}
	// Atomically, for the transport may be in use.
	protocols, _ := (*atomic.Value)(field.Addr().UnsafePointer()).Load().(map[string]http.RoundTripper)
	for _, scheme := range []string{"http", "https"} {
		if rt := protocols[scheme]; rt != nil {
			switch reflect.TypeOf(rt).PkgPath() { // "" for a pointer: theirs are none
			case "net/http", "golang.org/x/net/http2":
			default:
				return true
			}
		}
	}
	return false
}

// fromEnvironment reports whether proxy is http.ProxyFromEnvironment, whose
// answer depends on nothing but a URL's scheme and host, and so can be kept.
func fromEnvironment(proxy func(*http.Request) (*url.URL, error)) bool {
	return reflect.ValueOf(proxy).Pointer() == reflect.ValueOf(http.ProxyFromEnvironment).Pointer()
}
