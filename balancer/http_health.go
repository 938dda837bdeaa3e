package balancer

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// healthBody is how much of the answer to a health check is looked at. Up to
// healthDrain more is read so that the connection can be used again.
const (
	healthBody  = 4 << 10
	healthDrain = 64 << 10
)

// layered tells that there is a layer, whose connections HTTP checks can use, and
// whose dialer the others.
func (c *checker) layered(l *transport) {
	if c == nil || l.opaque {
		return
	}
	c.once.Do(func() {
		c.layer.Store(l)
		if c.cfg.Path != "" {
			close(c.ready)
		} else if c.cfg.TCP == On {
			c.startAnew() // what was found out by another dialer may be wrong
		}
	})
}

// guess is the scheme of checks until a call has told what the service speaks.
func (c *checker) guess(n *Node) string {
	_, service, _ := net.SplitHostPort(c.b.service)
	_, node, _ := net.SplitHostPort(n.endpoint.Load().Addr)
	if service == "443" || node == "443" {
		return "https"
	}
	return "http"
}

// scheme is what checks of n speak.
func (c *checker) scheme(n *Node) string {
	if told := c.told.Load(); told != nil {
		return *told
	}
	return c.guess(n)
}

// learn takes note of what calls speak.
func (c *checker) learn(scheme string) {
	if c.told.Load() == nil && c.told.CompareAndSwap(nil, &scheme) {
		c.startAnew()
	}
}

// request is a check by an HTTP request.
func (c *checker) request(ctx context.Context, n *Node) error {
	req, err := http.NewRequestWithContext(ctx, c.cfg.Method, c.scheme(n)+"://"+c.b.service+c.cfg.Path, nil)
	if err != nil {
		return err
	}
	req.Host = c.cfg.Host
	for name, value := range c.cfg.Header {
		req.Header.Set(name, value)
	}
	rt, done, err := c.transport(req, n)
	if err != nil {
		return err
	}
	defer done()
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, healthBody))
	_, _ = io.CopyN(io.Discard, resp.Body, healthDrain)
	switch {
	case !slices.ContainsFunc(c.cfg.Status, func(s StatusRange) bool { return s.First <= resp.StatusCode && resp.StatusCode <= s.Last }):
		if to := resp.Header.Get("Location"); to != "" && resp.StatusCode/100 == 3 {
			return fmt.Errorf("status %d, a redirect to %q, which is not followed", resp.StatusCode, to)
		}
		return fmt.Errorf("status %d", resp.StatusCode)
	case c.cfg.Body == "":
		return nil // whether the body comes to its end is no matter
	case !strings.Contains(string(body), c.cfg.Body):
		if err != nil {
			return err
		}
		return fmt.Errorf("the first %d bytes of the body are without %q", len(body), c.cfg.Body)
	}
	return nil
}

// transport returns what takes req to the node, and what to call afterwards.
func (c *checker) transport(req *http.Request, n *Node) (rt http.RoundTripper, done func(), err error) {
	l := c.layer.Load()
	if l.template != nil && c.cfg.Port != 0 {
		t := fromTemplate(l.template, c.elsewhere(l, n), &c.b.cfg, n.Endpoint().ServerName)
		t.DisableKeepAlives = true
		return t, t.CloseIdleConnections, nil
	}
	if req.URL.Scheme == "https" && l.template == nil {
		return nil, nil, &URLError{URL: req.URL.String(), Reason: "https needs an *http.Transport below"}
	}
	conn := l.conn(n)
	done = func() {
		// Its connections may have been closed, and this one made after that.
		c.b.mu.Lock()
		_, draining := c.b.leaving[n]
		c.b.mu.Unlock()
		if n.hasLeft() && !draining {
			l.drop(n)
		}
	}
	if own := conn.through(req); own != nil {
		return own, done, nil
	}
	if err = conn.readdress(req, new(url.URL)); err == nil && c.cfg.Port != 0 {
		_, req.URL.Host, err = c.addr(req.URL.Host, "")
	}
	return l.Next, done, err
}

// elsewhere dials the node at Health.Port.
func (c *checker) elsewhere(l *transport, n *Node) dialFunc {
	base := l.dialer()
	return func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx, n, base, "") }
}
