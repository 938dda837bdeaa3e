package discovery

import (
	"context"
	"encoding/binary"
	"math"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// wire listens to the connections of Go's resolver during one look-up and keeps
// what the resolver does not give: the TTL of the answer, and the addresses that
// came with an SRV answer.
type wire struct {
	mu    sync.Mutex
	ttl   time.Duration    // the least of the answer's; 0 until there is one
	extra map[string]found // by lower-case absolute name
}

// least returns the least TTL of the answer's records; 0 if there was none.
func (w *wire) least() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ttl
}

// addresses returns those of a name that came with an SRV answer.
func (w *wire) addresses(name string) found {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.extra[strings.ToLower(name)]
}

// listen returns conn, listened to. The connection closes when ctx ends: Go's
// resolver would wait for its own timeout.
func (w *wire) listen(ctx context.Context, conn net.Conn) net.Conn {
	t := &tap{Conn: conn, wire: w}
	t.stop = context.AfterFunc(ctx, func() { _ = conn.Close() })
	if packets, ok := conn.(net.PacketConn); ok {
		return &packetTap{tap: t, packets: packets}
	}
	t.stream = true
	return t
}

// tap is one connection to a name server. The resolver uses each for a single
// question, on one goroutine.
type tap struct {
	net.Conn

	wire   *wire
	stop   func() bool
	stream bool
	query  []byte
	answer []byte // of a stream, as far as it has come
	done   bool
}

// packetTap is a tap that Go's resolver recognises as one for packets.
type packetTap struct {
	*tap

	packets net.PacketConn
}

func (t *packetTap) ReadFrom(b []byte) (int, net.Addr, error) { return t.packets.ReadFrom(b) }

func (t *packetTap) WriteTo(b []byte, a net.Addr) (int, error) { return t.packets.WriteTo(b, a) }

func (t *tap) Close() error {
	t.stop()
	return t.Conn.Close()
}

func (t *tap) Write(b []byte) (int, error) {
	t.query = append(t.query, b...)
	return t.Conn.Write(b)
}

func (t *tap) Read(b []byte) (int, error) {
	n, err := t.Conn.Read(b)
	switch {
	case t.done:
	case !t.stream:
		t.done = t.wire.hear(t.query, b[:n])
	default:
		t.answer = append(t.answer, b[:n]...)
		if message, ok := framed(t.answer); ok {
			t.done = true
			if query, ok := framed(t.query); ok {
				t.wire.hear(query, message)
			}
		}
	}
	return n, err
}

// framed returns the message behind the length that precedes it on a stream
// (RFC 1035 §4.2.2), once it is all there.
func framed(b []byte) ([]byte, bool) {
	if len(b) < 2 {
		return nil, false
	}
	end := 2 + int(binary.BigEndian.Uint16(b))
	if len(b) < end {
		return nil, false
	}
	return b[2:end], true
}

// hear takes an answer, if it is one that Go's resolver will believe too: to
// this very question. It answers false to anything else, such as a forgery,
// after which the true answer may come. Of several, such as a truncated one and
// the whole one that follows by stream, the last counts, as for the resolver.
func (w *wire) hear(query, answer []byte) bool {
	var q, a dnsmessage.Parser
	asked, err := q.Start(query)
	if err != nil {
		return false
	}
	question, err := q.Question()
	if err != nil {
		return false
	}
	h, err := a.Start(answer)
	if err != nil || !h.Response || h.ID != asked.ID {
		return false
	}
	echo, err := a.Question()
	if err != nil || echo.Type != question.Type || echo.Class != question.Class ||
		!strings.EqualFold(echo.Name.String(), question.Name.String()) {
		return false
	}
	if a.SkipAllQuestions() != nil {
		return true
	}
	ttl, answered := leastTTL(&a, question.Type)
	if !answered {
		return true
	}
	var extra map[string]found
	if question.Type == dnsmessage.TypeSRV {
		extra = extraAddresses(&a)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ttl, w.extra = ttl, extra
	return true
}

// leastTTL reads the answer section: the least TTL of the records asked for and
// of the aliases that lead to them, and whether there is any of the first.
func leastTTL(p *dnsmessage.Parser, asked dnsmessage.Type) (ttl time.Duration, answered bool) {
	ttl = never
	for {
		h, err := p.AnswerHeader()
		if err != nil {
			return ttl, answered && err == dnsmessage.ErrSectionDone //nolint:errorlint // as documented
		}
		if h.Type == asked || h.Type == dnsmessage.TypeCNAME {
			ttl = min(ttl, seconds(h.TTL))
			answered = answered || h.Type == asked
		}
		if p.SkipAnswer() != nil {
			return 0, false
		}
	}
}

// extraAddresses reads the addresses of the additional section, by name.
func extraAddresses(p *dnsmessage.Parser) map[string]found {
	if p.SkipAllAuthorities() != nil {
		return nil
	}
	extra := make(map[string]found)
	for {
		h, err := p.AdditionalHeader()
		if err != nil {
			return extra
		}
		var addr netip.Addr
		switch h.Type {
		case dnsmessage.TypeA:
			r, err := p.AResource()
			if err != nil {
				return extra
			}
			addr = netip.AddrFrom4(r.A)
		case dnsmessage.TypeAAAA:
			r, err := p.AAAAResource()
			if err != nil {
				return extra
			}
			addr = netip.AddrFrom16(r.AAAA)
		default:
			if p.SkipAdditional() != nil {
				return extra
			}
			continue
		}
		name := strings.ToLower(h.Name.String())
		f, known := extra[name]
		if ttl := seconds(h.TTL); !known || ttl < f.ttl {
			f.ttl = ttl
		}
		f.addrs = append(f.addrs, addr.Unmap())
		extra[name] = f
	}
}

// seconds is a TTL off the wire; one with the top bit set counts as 0 (RFC 2181
// §8).
func seconds(ttl uint32) time.Duration {
	if ttl > math.MaxInt32 {
		return 0
	}
	return time.Duration(ttl) * time.Second
}
