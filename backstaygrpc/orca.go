package backstaygrpc

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	grpcbalancer "google.golang.org/grpc/balancer"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/balancer/loadreport"
)

// loadKey is where servers report their load, as
// xds.data.orca.v3.OrcaLoadReport (gRFC A51).
const loadKey = "endpoint-load-metrics-bin"

// reportFrom takes the report in an attempt's trailer, if there is one. A zero now means
// that the clock is read.
func reportFrom(l *balancer.Lease, now time.Time, trailer metadata.MD) {
	values := trailer[loadKey]
	if len(values) != 1 {
		return
	}
	if r, ok := loadreport.ParseBinary([]byte(values[0])); ok {
		l.Report(now, r)
	}
}

// loadMethod is the stream of reports that a server is asked for beside the calls.
const loadMethod = "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics"

const (
	// leastLoadInterval is as often as makes sense: what the figures are made of are
	// rates.
	leastLoadInterval = 10 * time.Millisecond
	loadBackoff       = time.Second
	loadBackoffMost   = 2 * time.Minute
)

// watchLoad asks the server at the other end of cc for a report every interval, or as
// often as it likes to, and takes them for node's, until ctx ends. It returns earlier if
// the server does not know the service. It is meant for a connection to one server.
func watchLoad(ctx context.Context, cc grpc.ClientConnInterface, node *balancer.Node, interval time.Duration) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	wait := loadBackoff
	for {
		heard, err := streamLoad(ctx, cc, node, interval)
		switch {
		case ctx.Err() != nil, status.Code(err) == codes.Unimplemented:
			return
		case heard:
			wait = loadBackoff
		}
		timer.Reset(wait/2 + rand.N(wait)) //nolint:gosec // jitter
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		wait = min(wait*2, loadBackoffMost)
	}
}

// streamLoad follows one stream to its end, and reports whether there was a report.
func streamLoad(ctx context.Context, cc grpc.ClientConnInterface, node *balancer.Node, interval time.Duration) (heard bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := cc.NewStream(ctx, &grpc.StreamDesc{StreamName: "StreamCoreMetrics", ServerStreams: true}, loadMethod,
		grpc.ForceCodecV2(bytesCodec{}), grpc.MaxCallRecvMsgSize(1<<20))
	if err != nil {
		return false, err
	}
	request := loadRequest(interval)
	if err = stream.SendMsg(&request); err == nil || errors.Is(err, io.EOF) { // with EOF the reason is at RecvMsg
		err = stream.CloseSend()
	}
	for err == nil {
		var data []byte
		if err = stream.RecvMsg(&data); err != nil {
			break
		}
		heard = true
		if r, ok := loadreport.ParseBinary(data); ok {
			node.Report(time.Time{}, r)
		}
	}
	return heard, err
}

// loadRequest is an xds.service.orca.v3.OrcaLoadReportRequest: the interval is its field
// 1, a google.protobuf.Duration of seconds and nanoseconds. Written by hand, for a few
// bytes are not worth a dependency.
func loadRequest(interval time.Duration) []byte {
	const varint, message = 0, 2
	d := binary.AppendUvarint([]byte{1<<3 | varint}, uint64(interval/time.Second))                 //nolint:gosec // positive
	d = binary.AppendUvarint(append(d, 2<<3|varint), uint64(interval%time.Second/time.Nanosecond)) //nolint:gosec // likewise
	return append([]byte{1<<3 | message, byte(len(d))}, d...)
}

// bytesCodec hands messages on as they are: *[]byte.
type bytesCodec struct{}

var _ encoding.CodecV2 = bytesCodec{}

func (bytesCodec) Marshal(v any) (mem.BufferSlice, error) {
	data, ok := v.(*[]byte)
	if !ok {
		return nil, errors.New("backstaygrpc: not bytes")
	}
	return mem.BufferSlice{mem.SliceBuffer(*data)}, nil
}

func (bytesCodec) Unmarshal(data mem.BufferSlice, v any) error {
	to, ok := v.(*[]byte)
	if !ok {
		return errors.New("backstaygrpc: not bytes")
	}
	*to = data.Materialize()
	return nil
}

// Name is that of the messages' real form.
func (bytesCodec) Name() string { return "proto" }

// loadProducer watches the load of a node over a connection of gRPC's balancers, which
// ends it when the connection's state changes.
type loadProducer struct {
	node     *balancer.Node
	interval time.Duration
	cancel   context.CancelFunc
}

// Build begins. gRPC calls it with the connection.
func (p *loadProducer) Build(cc any) (grpcbalancer.Producer, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	ended := make(chan struct{})
	conn, ok := cc.(grpc.ClientConnInterface)
	go func() {
		defer close(ended)
		if ok {
			watchLoad(ctx, conn, p.node, p.interval)
		}
	}()
	return p, func() {
		cancel()
		<-ended
	}
}

// stop ends it early. p may be nil.
func (p *loadProducer) stop() {
	if p != nil {
		p.cancel()
	}
}
