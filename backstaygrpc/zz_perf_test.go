package backstaygrpc_test

import (
	"context"
	"fmt"
	"os"
	"runtime/pprof"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/balancer"
)

func TestZZPerf(t *testing.T) {
	callers := 64
	if os.Getenv("SERIAL") != "" {
		callers = 1
	}
	var servers []*server
	for range 4 {
		servers = append(servers, startServer(t, handlers{unary: func(_ context.Context, in string) (string, error) { return in, nil }}))
	}
	type peer struct {
		name      string
		conn      grpc.ClientConnInterface
		wall, cpu []float64
		rd, wr, n, vc float64
	}
	svc := func(s backstay.Service) grpc.ClientConnInterface {
		return dial(t, newClient(t, &backstay.Config{Services: map[string]backstay.Service{"orders": s}}, servers...))
	}
	peers := []*peer{
		{name: "rr", conn: roundRobin(t, servers...)},
		{name: "conn", conn: svc(backstay.Service{})},
		{name: "conn-rr", conn: svc(backstay.Service{Policy: balancer.RoundRobin{}})},
		{name: "rr2", conn: roundRobin(t, servers...)},
	}
	if only := os.Getenv("ONLY"); only != "" {
		peers = slices.DeleteFunc(peers, func(p *peer) bool { return p.name != only })
	}
	cpu := func() float64 {
		var ru syscall.Rusage
		syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
		return float64(ru.Utime.Nano() + ru.Stime.Nano())
	}
	payload := string(make([]byte, 1024))
	work := func(p *peer, d time.Duration) {
		var n atomic.Int64
		var wg sync.WaitGroup
		w0, c0 := time.Now(), cpu()
		r0, x0, v0 := io2()
		for range callers {
			wg.Go(func() {
				k := int64(0)
				for {
					if k&15 == 0 && time.Since(w0) > d {
						break
					}
					k++
					out := new(text)
					if err := p.conn.Invoke(context.Background(), get, wrapperspb.String(payload), out); err != nil {
						panic(err)
					}
				}
				n.Add(k)
			})
		}
		wg.Wait()
		k := float64(n.Load())
		r1, x1, v1 := io2()
		p.rd += r1 - r0; p.wr += x1 - x0; p.n += k; p.vc += v1 - v0
		p.wall = append(p.wall, float64(time.Since(w0))/k)
		p.cpu = append(p.cpu, (cpu()-c0)/k)
	}
	for _, p := range peers {
		work(p, 300*time.Millisecond)
		p.wall, p.cpu = nil, nil
	}
	if f := os.Getenv("PROF"); f != "" {
		w, _ := os.Create(f)
		pprof.StartCPUProfile(w)
		defer pprof.StopCPUProfile()
	}
	for r := range rounds() {
		for i := range peers {
			work(peers[(i+r)%len(peers)], 50*time.Millisecond)
		}
	}
	med := func(v []float64) float64 { s := slices.Sorted(slices.Values(v)); return s[len(s)/2] }
	for _, p := range peers {
		var rw, rc []float64
		for i := range p.wall {
			rw = append(rw, p.wall[i]/peers[0].wall[i])
			rc = append(rc, p.cpu[i]/peers[0].cpu[i])
		}
		ops := 0.0
		for i := range p.wall {
			ops += 50e6 / p.wall[i]
		}
		fmt.Printf("OPS %.0f\n", ops)
		fmt.Printf("rd %.3f wr %.3f csw %.3f ", p.rd/p.n, p.wr/p.n, p.vc/p.n)
		fmt.Printf("%-8s wall %7.0f cpu %7.0f | paired wall %.3f cpu %.3f\n", p.name, med(p.wall), med(p.cpu), med(rw), med(rc))
	}
}

func rounds() int {
	if os.Getenv("PROF") != "" {
		return 300
	}
	return 80
}

func io2() (r, w, v float64) {
	b, _ := os.ReadFile("/proc/self/io")
	var a [7]float64
	fmt.Sscanf(string(b), "rchar: %g\nwchar: %g\nsyscr: %g\nsyscw: %g", &a[0], &a[1], &a[2], &a[3])
	var ru syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
	return a[2], a[3], float64(ru.Nvcsw + ru.Nivcsw)
}
