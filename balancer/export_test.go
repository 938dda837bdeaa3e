package balancer

import (
	"math/rand/v2"
	"net/http"
)

// Seed has b draw from r what it leaves to chance by itself. It comes before the
// first call.
func (b *Balancer) Seed(r rand.Source) { b.draw = draw{r} }

// Filling reports whether a layer is making connections ahead of calls.
func Filling(rt http.RoundTripper) bool {
	l := rt.(*transport)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		if c.filling() {
			return true
		}
	}
	return false
}

func (c *conn) filling() bool {
	if c.own != nil {
		if p := c.own.last.Load(); p != nil {
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.filling || p.dialing > 0 {
				return true
			}
		}
	}
	lanes := c.lanes.Load()
	if lanes == nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range *lanes {
		if (*lanes)[i].Load().warm.filling {
			return true
		}
	}
	return false
}
