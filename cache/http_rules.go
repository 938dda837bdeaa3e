package cache

import (
	"net/http"
	"net/url"
	"strings"
	"time"
)

// httpURL is what an unsafe request invalidates.
type httpURL struct {
	scheme, host, authority, path, query string
}

// httpKey is what a response is stored under. Its strings are the request's own,
// so that to make one allocates nothing.
type httpKey struct {
	httpURL
	encoding string // the request's Accept-Encoding
}

// urlOf is the identity of u, asked for under the given Host, which may be empty.
func urlOf(u *url.URL, host string) httpURL {
	k := httpURL{scheme: u.Scheme, host: hostOf(u.Scheme, u.Host), path: u.EscapedPath(), query: u.RawQuery}
	if host != "" && host != u.Host {
		k.authority = hostOf(u.Scheme, host)
	}
	if k.path == "" {
		k.path = "/"
	}
	return k
}

// hostOf is host in lower case, without the scheme's default port.
func hostOf(scheme, host string) string {
	host = strings.ToLower(host)
	if scheme == "https" {
		return strings.TrimSuffix(host, ":443")
	}
	return strings.TrimSuffix(host, ":80")
}

// keyOf returns what the answer to req is stored under, and false if req is none
// that may be answered from the cache.
func keyOf(req *http.Request) (httpKey, bool) {
	u := req.URL
	if u == nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" ||
		u.Opaque != "" || u.User != nil || u.ForceQuery {
		return httpKey{}, false
	}
	encoding, ok := encodingOf(req)
	if !ok {
		return httpKey{}, false
	}
	return httpKey{httpURL: urlOf(u, req.Host), encoding: encoding}, true
}

// encodingOf returns a request's Accept-Encoding, and false if its method, its
// body or another field is such that it may not be answered from the cache.
func encodingOf(req *http.Request) (string, bool) {
	if req.Method != "" && req.Method != http.MethodGet || req.Body != nil && req.Body != http.NoBody {
		return "", false
	}
	var encoding []string
	for name, values := range req.Header {
		if len(values) == 0 {
			continue
		}
		// net/http sends names as they are spelled in the map.
		switch http.CanonicalHeaderKey(name) {
		case "Authorization", "Proxy-Authorization", "Cookie", "Range", "Upgrade",
			"If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since", "If-Range",
			"Cache-Control", "Pragma":
			return "", false
		case "Accept-Encoding":
			if encoding != nil {
				return "", false // spelled in two ways, of which either may come first
			}
			encoding = values
		}
	}
	return strings.Join(encoding, ","), true
}

// asks reports whether a request that was sent in place of one with the given
// key, as the answer says, still asks for what the key says, and on nobody's
// behalf. Where it was sent to is the business of the layers that chose that.
func (k *httpKey) asks(sent *http.Request) bool {
	if sent == nil { // nobody says
		return true
	}
	encoding, ok := encodingOf(sent)
	return ok && encoding == k.encoding &&
		sent.URL != nil && sent.URL.User == nil && sent.URL.RawQuery == k.query
}

// safe reports whether a method changes nothing (RFC 9110 §9.2.1).
func safe(method string) bool {
	switch method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	return false
}

// mayStore reports whether a response to a request that has a key may be stored
// if its body comes to its end, and for how long from now: at most ttl, which is
// no limit if negative, and at most what the response itself says.
func mayStore(resp *http.Response, ttl time.Duration, maxBody int64, now time.Time) (time.Duration, bool) {
	if resp.StatusCode != http.StatusOK || resp.ContentLength > maxBody || len(resp.Trailer) > 0 ||
		endsByClose(resp) {
		return 0, false
	}
	for name, values := range resp.Header {
		switch http.CanonicalHeaderKey(name) {
		case "Set-Cookie", "Trailer", "Content-Range":
			return 0, false
		case "Content-Type":
			if endless(values) {
				return 0, false
			}
		case "Vary":
			if !onlyAcceptEncoding(values) {
				return 0, false
			}
		}
	}
	c := readControl(resp.Header.Values("Cache-Control"))
	if c.forbids {
		return 0, false
	}
	if limit, ok := lifetime(resp.Header, c, now); ok {
		limit -= ageOf(resp.Header)
		if ttl < 0 || limit < ttl {
			ttl = limit
		}
		if ttl <= 0 {
			return 0, false
		}
	}
	return ttl, true
}

// lifetime is how long the origin wants its response to be given out, for a
// shared cache (RFC 9111 §4.2.1).
func lifetime(h http.Header, c control, now time.Time) (time.Duration, bool) {
	switch {
	case c.sMaxAge >= 0:
		return c.sMaxAge, true
	case c.maxAge >= 0:
		return c.maxAge, true
	}
	expires := h.Values("Expires")
	if len(expires) == 0 {
		return 0, false
	}
	at, err := http.ParseTime(expires[0])
	if err != nil {
		return 0, true // RFC 9111 §5.3: an invalid date, above all "0", is in the past
	}
	if date, err := http.ParseTime(h.Get("Date")); err == nil {
		now = date
	}
	return at.Sub(now), true
}

// ageOf is how old a response was when it came.
func ageOf(h http.Header) time.Duration { return readSeconds(trim(h.Get("Age"))) }

// endsByClose reports whether the body's end is that of the connection, so that
// a broken one cannot be told from a complete one. (A compressed one can: what
// the transport has unpacked has a checksum.)
func endsByClose(resp *http.Response) bool {
	return resp.ProtoMajor == 1 && resp.Close && resp.ContentLength < 0 && !resp.Uncompressed &&
		len(resp.TransferEncoding) == 0
}

// endless reports whether a content type is one of streams that do not end.
func endless(contentType []string) bool {
	for _, v := range contentType {
		media, _, _ := strings.Cut(v, ";")
		switch strings.ToLower(trim(media)) {
		case "text/event-stream", "multipart/x-mixed-replace":
			return true
		}
	}
	return false
}

// onlyAcceptEncoding reports whether Vary names nothing but Accept-Encoding,
// which is part of the key.
func onlyAcceptEncoding(vary []string) bool {
	for _, line := range vary {
		for name := range strings.SplitSeq(line, ",") {
			if name = trim(name); name != "" && !strings.EqualFold(name, "Accept-Encoding") {
				return false
			}
		}
	}
	return true
}

// storedHeader is the part of a response's header that is stored: without the
// fields that concern its connection (RFC 9111 §3.1), with room for its Age.
func storedHeader(h http.Header) http.Header {
	stored := h.Clone()
	if stored == nil {
		stored = make(http.Header, 1)
	}
	for _, line := range h.Values("Connection") {
		for name := range strings.SplitSeq(line, ",") {
			stored.Del(trim(name))
		}
	}
	for _, name := range []string{
		"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authentication-Info", "Proxy-Authorization",
		"Proxy-Connection", "Te", "Transfer-Encoding", "Upgrade",
	} {
		stored.Del(name)
	}
	stored.Set("Age", "0")
	return stored
}
