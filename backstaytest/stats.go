package backstaytest

import (
	"hash/maphash"
	"io"
	"maps"
	"net/http"
)

// Stats is what a [Server] has seen.
type Stats struct {
	// Requests is how many have arrived, up to their headers; ByMethod splits
	// them.
	Requests int
	ByMethod map[string]int
	// InFlight is how many are being served now, MaxInFlight the most at once.
	InFlight, MaxInFlight int
	// Connections is how many have been accepted, OpenConnections how many of
	// them stand.
	Connections, OpenConnections int
}

func (s Stats) plus(o Stats) Stats {
	s.Requests += o.Requests
	methods := maps.Clone(o.ByMethod)
	for method, n := range s.ByMethod {
		methods[method] += n
	}
	s.ByMethod = methods
	s.InFlight += o.InFlight
	s.MaxInFlight += o.MaxInFlight
	s.Connections += o.Connections
	s.OpenConnections += o.OpenConnections
	return s
}

// Stats returns what the server has seen in all its lives.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	stats := s.stats
	stats.ByMethod = make(map[string]int, len(s.stats.ByMethod))
	maps.Copy(stats.ByMethod, s.stats.ByMethod)
	return stats
}

// ResetStats begins to count anew: requests, connections, keys and bodies. What
// is in flight or open goes on to count as such.
func (s *Server) ResetStats() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats = Stats{
		InFlight: s.stats.InFlight, MaxInFlight: s.stats.InFlight,
		OpenConnections: s.stats.OpenConnections,
	}
	s.keys, s.bodies = nil, nil
}

// Seen returns how many requests have arrived that bear key: by default in
// their Idempotency-Key or, without one, X-Request-Id header. A request counts
// as soon as its headers are there, for from then on the server may have acted.
func (s *Server) Seen(key string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys[key]
}

// SeenBody returns how many requests have arrived with this body, of those
// whose bodies were read to their end.
func (s *Server) SeenBody(body []byte) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bodies[maphash.Bytes(bodySeed, body)]
}

// bodySeed is the same for all servers, so that their counts can be compared.
var bodySeed = maphash.MakeSeed() //nolint:gochecknoglobals // constant after start

func requestKey(r *http.Request) string {
	if key := r.Header.Get("Idempotency-Key"); key != "" {
		return key
	}
	return r.Header.Get("X-Request-Id")
}

// began counts a request and sets about hashing its body.
func (s *Server) began(r *http.Request) {
	key := s.keyOf(r)
	s.mu.Lock()
	s.stats.Requests++
	if s.stats.ByMethod == nil {
		s.stats.ByMethod = make(map[string]int)
	}
	s.stats.ByMethod[r.Method]++
	s.stats.InFlight++
	s.stats.MaxInFlight = max(s.stats.MaxInFlight, s.stats.InFlight)
	if key != "" {
		if s.keys == nil {
			s.keys = make(map[string]int)
		}
		s.keys[key]++
	}
	s.mu.Unlock()
	if r.Body != nil && r.Body != http.NoBody {
		body := &countedBody{ReadCloser: r.Body, server: s}
		body.hash.SetSeed(bodySeed)
		r.Body = body
	}
}

func (s *Server) ended() {
	s.mu.Lock()
	s.stats.InFlight--
	s.mu.Unlock()
}

// countedBody counts a request's body once it has been read to its end.
type countedBody struct {
	io.ReadCloser
	server *Server
	hash   maphash.Hash
	done   bool
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	_, _ = b.hash.Write(p[:n])
	if err == io.EOF && !b.done {
		b.done = true
		b.server.mu.Lock()
		if b.server.bodies == nil {
			b.server.bodies = make(map[uint64]int)
		}
		b.server.bodies[b.hash.Sum64()]++
		b.server.mu.Unlock()
	}
	return n, err
}
