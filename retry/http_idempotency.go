package retry

import (
	"crypto/rand"
	"fmt"
	"net/http"

	"github.com/backstay/backstay/outcome"
)

// repeatable reports whether req may be repeated though it may have been acted on.
// It is asked only after a failure, and before what is kept for one.
func (c *Config) repeatable(req *http.Request) bool {
	return idempotent(req.Context(), c.RetryNonIdempotent == On || outcome.Idempotent(req))
}

// keyed returns req with an Idempotency-Key if GenerateKey has one made for it: a
// copy then, with a header map of its own.
func (c *Config) keyed(req *http.Request) *http.Request {
	if c.MaxAttempts <= 1 || req.Method != http.MethodPost && req.Method != http.MethodPatch ||
		outcome.Idempotent(req) || !idempotent(req.Context(), true) {
		return req
	}
	out := req.WithContext(req.Context())
	if out.Header = req.Header.Clone(); out.Header == nil {
		out.Header = make(http.Header, 1)
	}
	out.Header["Idempotency-Key"] = []string{newKey()}
	return out
}

// newKey returns a random UUID, version 4 (RFC 9562 §5.4).
func newKey() string {
	var u [16]byte
	_, _ = rand.Read(u[:]) // never fails
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}
