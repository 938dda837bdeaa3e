package backstay

import (
	"fmt"
	"net/http"
	"strings"
)

// routeHandler is what the client's ServeMux finds: a pattern, and no handler.
type routeHandler string

func (routeHandler) ServeHTTP(http.ResponseWriter, *http.Request) {}

// newMux returns a ServeMux that matches the routes' patterns; nil without any.
func newMux(routes map[string]Route) (*http.ServeMux, []error) {
	if len(routes) == 0 {
		return nil, nil
	}
	mux := http.NewServeMux()
	var errs []error
	for _, pattern := range sorted(routes) {
		if err := handle(mux, pattern); err != nil {
			errs = append(errs, err)
		}
	}
	return mux, errs
}

// handle registers a pattern. ServeMux panics where it could say no.
func handle(mux *http.ServeMux, pattern string) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("backstay: Routes[%q]: %s", pattern, withoutPlaces(fmt.Sprint(p)))
		}
	}()
	seen := pattern
	if method, all := strings.CutSuffix(pattern, "/*"); all { // as gRPC has it, for what begins so
		seen = method + "/"
	}
	mux.Handle(seen, routeHandler(pattern))
	if host := routeHost(pattern); host != strings.ToLower(hostOf(host)) {
		return fmt.Errorf("backstay: Routes[%q]: host is %q, want it in lower case and without a port: it is that of all ports", pattern, host)
	}
	if method, _, ok := strings.Cut(pattern, " "); ok && method != strings.ToUpper(method) && isMethod(strings.ToUpper(method)) {
		return fmt.Errorf("backstay: Routes[%q]: method is %q, want it in upper case, as requests have it", pattern, method)
	}
	return nil
}

// withoutPlaces leaves out where in the code patterns were registered: all were here.
func withoutPlaces(text string) string {
	for {
		before, place, ok := strings.Cut(text, " (registered at ")
		if !ok {
			return text
		}
		_, after, _ := strings.Cut(place, ")")
		text = before + after
	}
}

// isMethod reports whether a method is one of HTTP's own.
func isMethod(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch,
		http.MethodDelete, http.MethodConnect, http.MethodOptions, http.MethodTrace:
		return true
	}
	return false
}

// routeHost returns the host whose calls a pattern matches; "" for any host's.
func routeHost(pattern string) string {
	if i := strings.IndexAny(pattern, " \t"); i >= 0 {
		pattern = strings.TrimLeft(pattern[i:], " \t")
	}
	host, _, _ := strings.Cut(pattern, "/")
	return host
}

// routeApplies reports whether calls to a service can match the pattern.
func routeApplies(pattern, service string) bool {
	host := routeHost(pattern)
	return host == "" || host == hostOf(service)
}
