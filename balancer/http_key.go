package balancer

import "net/http"

// HashKey says what of a request is its key, for policies that hash: the first of
// those below that is set and that the request has.
type HashKey struct {
	// Header is a header's name. Default: none.
	Header string `json:"header,omitempty"`
	// Cookie is a cookie's name. Default: none.
	Cookie string `json:"cookie,omitempty"`
	// Query is the name of a parameter in the URL. Default: none.
	Query string `json:"query,omitempty"`
}

// of returns the request's key; "" if it has none.
func (k *HashKey) of(req *http.Request) string {
	if k.Header != "" {
		if v := req.Header.Get(k.Header); v != "" {
			return v
		}
	}
	if k.Cookie != "" {
		if c, err := req.Cookie(k.Cookie); err == nil && c.Value != "" {
			return c.Value
		}
	}
	if k.Query != "" {
		return req.URL.Query().Get(k.Query)
	}
	return ""
}

// aim says where the call should go, as far as the request, its context and the
// route have an opinion.
func (l *transport) aim(c *Call, req *http.Request, subset string) {
	c.Subset = subset
	l.b.Aim(req.Context(), c)
	if c.Key == "" && l.hashes {
		c.Key = l.b.cfg.HashKey.of(req)
	}
}
