package outcome

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
)

// ofError classifies an error by what it is, most specific first.
func ofError(err error) Outcome {
	o := Outcome{Class: Failure, Retry: IfIdempotent, Err: err}
	if after, ok := RetryAfter(err); ok {
		o.After = after
	}
	var (
		body  *BodyError
		final *permanent
	)
	switch {
	case Refused(err), errors.Is(err, ErrCallTimeout), errors.As(err, &body):
		o.Class, o.Retry = Neutral, Never
	case errors.Is(err, ErrAttemptTimeout), errors.Is(err, ErrBodyIdle):
		// Before the context's errors: they match DeadlineExceeded too.
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded) && !networkTimeout(err):
		o.Class, o.Retry = Neutral, Never
	case wrongPeer(err):
		o.Retry = Elsewhere
	case NotSent(err), refusedStream(err):
		o.Retry = Always
	}
	if errors.As(err, &final) {
		o.Retry = Never
	}
	return o
}

// networkTimeout reports whether a timeout came from the network (a dial, a TLS
// handshake, a server that sent no header in time) rather than from a context.
// Such errors answer to context.DeadlineExceeded as well, so Is cannot tell
// them apart; identity can.
func networkTimeout(err error) bool {
	for e := err; e != nil; e = errors.Unwrap(e) {
		if e == context.DeadlineExceeded { //nolint:errorlint // identity is the point
			return false
		}
	}
	var netErr net.Error
	return errors.As(err, &netErr) && netErr.Timeout()
}

// wrongPeer reports whether what answered is not who it should be, or does not
// speak what it should: the same node would answer the same again.
func wrongPeer(err error) bool {
	var (
		verification *tls.CertificateVerificationError
		authority    x509.UnknownAuthorityError
		hostname     x509.HostnameError
		invalid      x509.CertificateInvalidError
		header       tls.RecordHeaderError
		alert        tls.AlertError
	)
	return errors.As(err, &verification) || errors.As(err, &authority) ||
		errors.As(err, &hostname) || errors.As(err, &invalid) ||
		errors.As(err, &header) || errors.As(err, &alert) || schemeMismatch(err)
}

// dialFailed reports whether no connection was made at all.
func dialFailed(err error) bool {
	var op *net.OpError
	if errors.As(err, &op) && (op.Op == "dial" || op.Op == "proxyconnect") {
		return true
	}
	var dns *net.DNSError
	return errors.As(err, &dns)
}

// streamError has the shape of net/http's unexported HTTP/2 stream error, which
// copies itself into any struct with these fields (its As method does so for
// x/net/http2's sake).
type streamError struct {
	StreamID uint32
	Code     uint32
	Cause    error
}

func (streamError) Error() string { return "stream error" }

// codeRefusedStream is REFUSED_STREAM of RFC 9113 §7: the peer did not act.
const codeRefusedStream = 7

func refusedStream(err error) bool {
	var stream streamError
	return errors.As(err, &stream) && stream.Code == codeRefusedStream
}
