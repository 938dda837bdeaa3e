package backstay_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/call"
	"github.com/backstay/backstay/event"
	"github.com/backstay/backstay/outcome"
)

// Four servers under the load of 32 callers, one of which fails in some way. The
// figures are those that the project promises.
const (
	callers   = 32
	settle    = 2 * time.Second        // after a fault, until the bad node is left alone
	look      = 800 * time.Millisecond // how long is counted then
	mostToBad = 0.02                   // of the attempts
)

// oneOfFour are the ways in which one node fails.
var oneOfFour = []struct {
	name   string
	change func(*backstay.Service)
	fault  func(*backstaytest.Server)
}{
	{"killed", nil, (*backstaytest.Server).Kill},
	{"stalls", quick, (*backstaytest.Server).Stall},
	{"freezes", quick, (*backstaytest.Server).Freeze},
	{"resets before the headers", nil, (*backstaytest.Server).ResetBeforeHeaders},
	// A 500 is repeated only for those who say that it may be.
	{"fails in 1 ms", func(s *backstay.Service) { s.Retry.Statuses = []int{500} }, (*backstaytest.Server).FailFast},
}

// A stalled node's calls end with their attempt's timeout, and the default of 10 s is
// longer than the tests; an answer's body that freezes half-way ends by its own
// timeout, or never.
func quick(s *backstay.Service) {
	s.AttemptTimeout, s.BodyIdleTimeout = 400*time.Millisecond, 400*time.Millisecond
}

// In memory and in virtual time: no good node is slow because the machine is busy.
func TestOneNodeOfFourFails(t *testing.T) {
	for _, test := range oneOfFour {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := startLoadOn(t, 4, backstaytest.NewNetwork(), test.change)
				l.run(300 * time.Millisecond)
				test.fault(l.bad)
				l.run(settle)
				l.count()
				l.run(look)
				all, bad := l.counted()
				l.end()
				t.Logf("%d calls, %d attempts counted, %d of them to the bad node", l.calls.Load(), all, bad)
				require.LessOrEqual(t, float64(bad), mostToBad*float64(all))
			})
		})
	}
}

func TestOneNodeOfFourFailsOnLoopback(t *testing.T) {
	for _, test := range oneOfFour {
		t.Run(test.name, func(t *testing.T) {
			l := startLoadOn(t, 4, nil, func(s *backstay.Service) {
				if test.change != nil {
					test.change(s)
				}
				s.AttemptTimeout *= 5 // for a machine that is busy
			})
			l.run(300 * time.Millisecond)
			test.fault(l.bad)
			l.run(time.Second)
			l.end()
		})
	}
}

func TestOneNodeOfFourIsRestarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := startLoadOn(t, 4, backstaytest.NewNetwork(), func(s *backstay.Service) {
			// So that the node is tried again within the test; the default is 5 s.
			s.Breaker.OpenTime = 500 * time.Millisecond
		})
		l.run(300 * time.Millisecond)
		l.bad.Kill()
		l.run(700 * time.Millisecond)
		l.bad.Restart()
		// It is left alone for up to two open times and the doubt that remains.
		for begin, all, bad := time.Now(), int64(1), int64(0); float64(bad) <= 0.1*float64(all) && len(l.lost) == 0; {
			require.Less(t, time.Since(begin), 10*time.Second, "the node has its share again")
			l.count()
			l.run(100 * time.Millisecond)
			all, bad = l.counted()
		}
		l.end()
	})
}

// load is callers at work on a fleet.
type load struct {
	t     *testing.T
	fleet *backstaytest.Fleet
	bad   *backstaytest.Server
	c     *backstay.Client

	stop  chan struct{}
	work  sync.WaitGroup
	calls atomic.Int64
	posts atomic.Int64
	lost  chan error

	all, toBad atomic.Int64 // attempts
}

// startLoadOn puts servers under load: on a network in memory, for bubbles, or on
// loopback where that is nil.
func startLoadOn(t *testing.T, servers int, network *backstaytest.Network, change func(*backstay.Service)) *load {
	t.Helper()
	if network == nil {
		backstaytest.CheckLeaks(t)
	}
	l := &load{t: t, stop: make(chan struct{}), lost: make(chan error, 1)}
	l.fleet = backstaytest.NewFleet(t, servers, &backstaytest.FleetConfig{Network: network, Handler: http.HandlerFunc(serveBlob)})
	l.bad = l.fleet.Server(0)
	l.c = fleetClient(t, l.fleet, func(cfg *backstay.Config, s *backstay.Service) {
		cfg.Observer = event.ObserverFunc(l.observe)
		if change != nil {
			change(s)
		}
	})
	for i := range callers {
		l.work.Go(func() { l.caller(i) })
	}
	t.Cleanup(l.quit)
	return l
}

// observe counts the attempts of finished calls.
func (l *load) observe(_ context.Context, e event.Event) {
	f, ok := e.(call.Finished)
	if !ok {
		return
	}
	for _, a := range f.Record.Attempts {
		l.all.Add(1)
		if a.Node == l.bad.ID {
			l.toBad.Add(1)
		}
	}
}

// count begins to count attempts anew.
func (l *load) count() { l.all.Store(0); l.toBad.Store(0) }

func (l *load) counted() (all, bad int64) { return l.all.Load(), l.toBad.Load() }

// run lets the load go on for a time.
func (l *load) run(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case err := <-l.lost:
		select {
		case l.lost <- err: // the test's end will report it
		default: // or another one
		}
	}
}

func (l *load) quit() {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.work.Wait()
}

// end stops the callers and checks what must hold at any time.
func (l *load) end() {
	l.t.Helper()
	for l.calls.Load() <= enough && len(l.lost) == 0 { // a slow machine takes longer
		l.run(10 * time.Millisecond)
	}
	l.quit()
	select {
	case err := <-l.lost:
		require.NoError(l.t, err, "an idempotent call was lost, or an answer is wrong")
	default:
	}
	require.Empty(l.t, l.fleet.Repeated(), "a POST without a key was sent twice")
	require.NotZero(l.t, l.posts.Load())
}

// enough is how many calls are a load.
const enough = 200

// caller makes one call after the other, with pauses.
func (l *load) caller(i int) {
	source := rand.New(rand.NewPCG(uint64(i), 1))
	pause := time.NewTimer(1)
	defer pause.Stop()
	for n := 0; ; n++ {
		select {
		case <-l.stop:
			return
		case <-pause.C:
		}
		method := [...]string{http.MethodGet, http.MethodPut, http.MethodGet, http.MethodPost}[source.IntN(4)]
		err := l.call(method, source.IntN(len(blobs)), fmt.Sprintf("%d-%d", i, n))
		l.calls.Add(1)
		if method == http.MethodPost {
			l.posts.Add(1) // may fail; that it is sent once only is the fleet's to say
		}
		if err != nil && (method != http.MethodPost || errors.Is(err, errWrongBody)) {
			select {
			case l.lost <- fmt.Errorf("%s: %w", method, err):
			default:
			}
		}
		pause.Reset(time.Duration(5+source.IntN(20)) * time.Millisecond)
	}
}

var errWrongBody = errors.New("the body is not what was asked for")

// call makes one call. A body that breaks is no error: the call was over for us
// when its headers came. A complete one that is wrong is.
func (l *load) call(method string, blob int, id string) error {
	var body io.Reader
	if method != http.MethodGet {
		body = bytes.NewReader(blobs[blob])
	}
	req, err := http.NewRequestWithContext(context.Background(), method, l.fleet.URL()+"/"+strconv.Itoa(blob), body)
	if err != nil {
		return err
	}
	if method == http.MethodPost {
		req.Header.Set("X-Request-Id", id)
	}
	resp, err := l.c.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode >= 500 {
		return outcome.StatusError(resp.StatusCode)
	}
	got, err := io.ReadAll(resp.Body)
	if err == nil && sha256.Sum256(got) != sums[blob] {
		return errWrongBody
	}
	return nil
}

// blobs are what is sent to and fro, and sums their hashes.
var blobs, sums = func() (blobs [16][]byte, sums [16][sha256.Size]byte) {
	source := rand.NewChaCha8([32]byte{1})
	for i := range blobs {
		blobs[i] = make([]byte, 100+i*500)
		_, _ = source.Read(blobs[i])
		sums[i] = sha256.Sum256(blobs[i])
	}
	return blobs, sums
}()

// serveBlob answers with the blob of the path, and with 400 a body that is not
// that blob.
func serveBlob(w http.ResponseWriter, r *http.Request) {
	i, err := strconv.Atoi(r.URL.Path[1:])
	if err != nil || i >= len(blobs) {
		http.Error(w, "no such blob", http.StatusBadRequest)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil || r.Method != http.MethodGet && !bytes.Equal(body, blobs[i]) {
		http.Error(w, "wrong body", http.StatusBadRequest)
		return
	}
	work := time.NewTimer(2 * time.Millisecond)
	defer work.Stop()
	select {
	case <-work.C:
	case <-r.Context().Done():
		return
	}
	_, _ = w.Write(blobs[i])
}
