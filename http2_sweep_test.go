package backstay_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/backstay/backstay/backstaytest"
)

// serveHTTP2 serves one connection, a stream after the other.
func (s *sweptServers) serveHTTP2(c net.Conn) {
	if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	fr := http2.NewFramer(c, c)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_ = fr.WriteSettings()
	var (
		id uint32 // the stream's
		a  arrival
		f  *fault
	)
	for {
		frame, err := fr.ReadFrame()
		if err != nil {
			return
		}
		ended := false
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				_ = fr.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !frame.IsAck() {
				_ = fr.WritePing(true, frame.Data)
			}
		case *http2.MetaHeadersFrame:
			id, f = frame.StreamID, s.take(false)
			a = arrival{bytes: 1, head: true, method: frame.PseudoValue("method")}
			for _, h := range frame.RegularFields() {
				if h.Name == "idempotency-key" {
					a.key = h.Value
				}
			}
			ended = frame.StreamEnded() || f != nil && f.early
		case *http2.DataFrame:
			_ = fr.WriteWindowUpdate(0, max(uint32(len(frame.Data())), 1))
			if frame.StreamID == id {
				a.body += string(frame.Data())
				ended = frame.StreamEnded()
			}
		}
		if !ended {
			continue
		}
		a.whole = f == nil || !f.early
		s.saw(a)
		good := s.answerHTTP2(c, fr, id, f)
		id = 0 // what still comes of it is of no interest
		if !good {
			return
		}
	}
}

// answerHTTP2 answers a stream, up to the fault if there is one, and reports
// whether the connection goes on.
func (s *sweptServers) answerHTTP2(c net.Conn, fr *http2.Framer, id uint32, f *fault) bool {
	out, _ := s.frames(id)
	if f == nil {
		_, err := c.Write(out)
		return err == nil
	}
	if _, err := c.Write(out[:f.at]); err != nil {
		return false
	}
	if f.frame != nil {
		f.frame(fr, id)
		return true
	}
	s.breakOff(c, f.what)
	return false
}

// frames is a good answer, and where its frames end.
func (s *sweptServers) frames(id uint32) (out []byte, ends []int) {
	var buf, headers bytes.Buffer
	enc := hpack.NewEncoder(&headers)
	for _, h := range [][2]string{{":status", "200"}, {"content-type", "text/plain"}, {"content-length", strconv.Itoa(len(s.answer))}} {
		_ = enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
	}
	fr := http2.NewFramer(&buf, nil)
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: headers.Bytes(), EndHeaders: true})
	ends = append(ends, buf.Len())
	for rest := s.answer; rest != ""; {
		n := min(len(rest), 100)
		_ = fr.WriteData(id, n == len(rest), []byte(rest[:n]))
		rest = rest[n:]
		ends = append(ends, buf.Len())
	}
	return buf.Bytes(), ends
}

// breaks are all faults of a server that speaks HTTP/2: the connection breaks at
// every byte of the answer, and between its frames streams are reset and
// connections said farewell to, with every code. Of the first stream of a connection
// net/http does not always say that a farewell was meant for it, unless its code is
// NO_ERROR: then it may be sent again, and need not.
func (s *sweptServers) breaks(first bool) (all []fault) {
	out, ends := s.frames(1)
	for at := range len(out) + 1 {
		for i, what := range []breakage{resets, closes} {
			if at%2 == i || at == ends[0] {
				all = append(all, fault{response: true, at: at, what: what})
			}
		}
	}
	for _, early := range []bool{true, false} {
		all = append(all, fault{response: true, early: early, what: resets})
		for _, at := range append([]int{0}, ends[:len(ends)-1]...) {
			if early && at > 0 {
				continue
			}
			all = append(all, fault{
				response: true, early: early, at: at, what: stalls, named: "stall",
				frame: func(*http2.Framer, uint32) {}, // of the stream alone
			})
			for code := http2.ErrCodeNo; code <= http2.ErrCodeHTTP11Required; code++ {
				all = append(all, fault{
					response: true, early: early, at: at, named: "RST_STREAM " + code.String(),
					frame:       func(fr *http2.Framer, id uint32) { _ = fr.WriteRSTStream(id, code) },
					unprocessed: at == 0 && code == http2.ErrCodeRefusedStream,
				}, fault{
					// It may still be answered, but then the connection ends.
					response: true, early: early, at: at, named: "GOAWAY after it, " + code.String(),
					frame: func(fr *http2.Framer, id uint32) {
						_ = fr.WriteGoAway(id, code, nil)
						_ = fr.WriteRSTStream(id, http2.ErrCodeInternal)
					},
				})
				if at == 0 {
					all = append(all, fault{
						response: true, early: early, at: at, named: "GOAWAY before it, " + code.String(),
						frame:       func(fr *http2.Framer, id uint32) { _ = fr.WriteGoAway(id-1, code, nil) },
						unprocessed: !first || code == http2.ErrCodeNo, disowned: true,
					})
				}
			}
		}
	}
	return all
}

func TestHTTP2MayBreakAtAnyByteAndBetweenFrames(t *testing.T) {
	for _, client := range sweptClients() {
		for _, call := range sweptCalls(300) {
			for _, idle := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/%s/idle=%v", client.name, call.name, idle), func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) {
						network := backstaytest.NewNetwork()
						servers := serveSwept(t, sweptText(400), true, inMemory(t, network, client.nodes)...)
						base := network.Transport()
						base.Protocols = new(http.Protocols)
						base.Protocols.SetUnencryptedHTTP2(true)
						rt, forget := client.make(t, servers.addrs, base, time.Second)
						s := &sweep{t: t, servers: servers, rt: rt, forget: forget, call: call, idle: idle, stalled: client.stalled}
						s.good()
						out, ends := servers.frames(1)
						for i, f := range servers.breaks(!idle) {
							// net/http sends again what has been answered with a PROTOCOL_ERROR:
							// golang/go#42777.
							again := strings.HasPrefix(f.named, "RST_STREAM PROTOCOL_ERROR") && f.at == 0 && call.getBody && !call.repeatable()
							if again || underRace && i%11 > 0 {
								continue
							}
							for n := 0; idle && n < client.nodes && f.unprocessed; n++ {
								s.good()
							}
							if err := s.bad(f, ends[0], len(out)); err != nil {
								t.Errorf("%v: %v", f, err)
							}
						}
						s.good()
					})
				})
			}
		}
	}
}
