package balancer

import (
	"cmp"
	"fmt"
	"time"

	"github.com/backstay/backstay/internal/inherit"
)

// ConnConfig is how a balancer's layers keep connections to each node. It applies
// where a layer makes them itself: see [Balancer.Layer].
type ConnConfig struct {
	// Min is how many connections to each node are kept open, made ahead of the
	// calls that need them, over https with their TLS handshake. They are made
	// when the node joins, and again when they are lost, as soon as a first call
	// has told the service's scheme. Over HTTP/2 it is no more than HTTP2Conns.
	// Negative: none. Default: none.
	Min int `json:"min,omitempty"`
	// Max is how many connections a node may have; further calls wait for one of
	// them. Those that are being replaced do not count. Negative: no limit.
	// Default: the template's MaxConnsPerHost, which is no limit by default.
	Max int `json:"max,omitempty"`
	// MaxAge is how old a connection gets, ±20 % at random for each. New calls then go
	// over another one, and the old one is closed when its calls are finished. In
	// net/http's pool (see ClientConns) that is so over HTTP/2, where those that a
	// server's limit on streams has made out of one of HTTP2Conns are replaced together.
	// Over HTTP/1.1 the next call that it is given there is its last, and asks the server
	// to close it; one that no call is given is closed when it has been idle for about as
	// long, and at least 10 s, or for the template's IdleConnTimeout if that is less; and
	// while a connection is past its age, calls cost a little more. No call is cut or
	// lost by it. Negative: no limit. Default: no limit.
	MaxAge time.Duration `json:"maxAge,omitempty"`
	// MaxRequests is how many calls a connection takes, ±20 % at random for each. Over
	// HTTP/2 calls that begin together may be a few more. To count them costs each call
	// a little, in net/http's pool. Negative: no limit. Default: no limit.
	MaxRequests int `json:"maxRequests,omitempty"`
	// HTTP2Conns is over how many HTTP/2 connections the calls to a node are
	// spread, in turn. Where a server bounds the streams of each, more are made as
	// they are needed, whatever this says. Default: 1.
	HTTP2Conns int `json:"http2Conns,omitempty"`
	// PingInterval is after how long without a word from the node an HTTP/2
	// connection is asked for a sign of life by a PING (RFC 9113 §6.7), also
	// while it is idle: net/http knows no difference. A template that sets
	// HTTP2.SendPingTimeout keeps it. Servers may not like it: those of grpc-go and
	// grpc-java close a connection, and its streams, after three PINGs less than 5
	// minutes apart between which they have sent nothing, unless told otherwise.
	// Negative: never. Default: 15s.
	PingInterval time.Duration `json:"pingInterval,omitempty"`
	// PingTimeout is how long the answer may take; then the connection is closed,
	// and its calls fail. A template that sets HTTP2.PingTimeout keeps it.
	// Default: 15s.
	PingTimeout time.Duration `json:"pingTimeout,omitempty"`
	// FallbackDelay is how long after one address of an endpoint the next is
	// tried as well, if the first has not answered; the first connection wins
	// (RFC 8305 §5). A failed one is followed by the next at once. Negative: they
	// are tried one after another. Default: 300ms.
	FallbackDelay time.Duration `json:"fallbackDelay,omitempty"`
	// ClientConns takes connections out of net/http's pool and keeps them in one of our
	// own, on [http.Transport.NewClientConn], which costs calls less.
	// HTTP/1.1 connections are then used in turn, one past its MaxAge takes no call at
	// all and is closed at once if it is idle, over HTTP/2 too each by itself, and the
	// streams that a server allows are known before they are asked for. Over h2c the
	// requests of a moment, and a request's head and its body, are sent by one write:
	// what a trace takes for written may not have been sent yet. That is not so if the
	// template sets HTTP2.WriteByteTimeout. Requests that
	// were not sent, or that net/http would repeat, are sent again on another connection
	// of the node. Default: On for http, Off for https.
	ClientConns Switch `json:"clientConns,omitempty"`
}

func (c ConnConfig) withDefaults() ConnConfig {
	c.Min, c.Max = max(c.Min, 0), max(c.Max, 0)
	c.MaxAge, c.MaxRequests = max(c.MaxAge, 0), max(c.MaxRequests, 0)
	c.HTTP2Conns = cmp.Or(c.HTTP2Conns, 1)
	c.PingInterval = inherit.Or(c.PingInterval, 15*time.Second)
	c.PingTimeout = cmp.Or(c.PingTimeout, 15*time.Second)
	c.FallbackDelay = inherit.Or(c.FallbackDelay, 300*time.Millisecond)
	return c
}

// validate returns all that is wrong with c.
func (c ConnConfig) validate() []error {
	var errs []error
	check := func(ok bool, field string, value any, want string) {
		if !ok {
			errs = append(errs, fmt.Errorf("balancer: Conns.%s is %v, want %s", field, value, want))
		}
	}
	limit := fmt.Sprintf("<= Conns.Max (%d)", c.Max)
	check(c.Max <= 0 || c.Min <= c.Max, "Min", c.Min, limit)
	check(c.HTTP2Conns >= 0, "HTTP2Conns", c.HTTP2Conns, ">= 0")
	check(c.Max <= 0 || c.HTTP2Conns <= c.Max, "HTTP2Conns", c.HTTP2Conns, limit)
	check(c.PingTimeout >= 0, "PingTimeout", c.PingTimeout, ">= 0")
	return errs
}
