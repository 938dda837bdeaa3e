package backstaygrpc

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	orcapb "github.com/cncf/xds/go/xds/data/orca/v3"
	orcaservice "github.com/cncf/xds/go/xds/service/orca/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/backstay/backstay/balancer"
	"github.com/backstay/backstay/discovery"
)

// loadStreams are streams of reports as the test wants them.
type loadStreams struct {
	grpc.ClientConnInterface // nil: nothing else is called

	t       *testing.T
	begun   []time.Duration
	start   time.Time
	reports func(n int) ([]*orcapb.OrcaLoadReport, error) // of the n-th stream, and its end
}

func (l *loadStreams) NewStream(ctx context.Context, _ *grpc.StreamDesc, method string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	require.Equal(l.t, "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics", method)
	l.begun = append(l.begun, time.Since(l.start))
	reports, end := l.reports(len(l.begun))
	return &loadStream{ctx: ctx, of: l, reports: reports, end: end}, nil
}

type loadStream struct {
	grpc.ClientStream

	ctx     context.Context
	of      *loadStreams
	reports []*orcapb.OrcaLoadReport
	end     error
}

func (s *loadStream) SendMsg(m any) error {
	var request orcaservice.OrcaLoadReportRequest
	require.NoError(s.of.t, proto.Unmarshal(*m.(*[]byte), &request))
	require.Equal(s.of.t, 90*time.Second+time.Millisecond, request.GetReportInterval().AsDuration())
	return nil
}

func (s *loadStream) CloseSend() error { return nil }

func (s *loadStream) RecvMsg(m any) error {
	if len(s.reports) > 0 {
		data, err := proto.Marshal(s.reports[0])
		require.NoError(s.of.t, err)
		s.reports = s.reports[1:]
		*m.(*[]byte) = data
		return nil
	}
	if s.end == nil {
		<-s.ctx.Done()
		return s.ctx.Err()
	}
	return s.end
}

// watching runs the test over the streams of one node, in a bubble.
func watching(t *testing.T, reports func(n int) ([]*orcapb.OrcaLoadReport, error), test func(l *loadStreams, n *balancer.Node, ended <-chan struct{})) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b, err := balancer.New("orders", discovery.Static(discovery.Addrs("10.0.0.1:80")...), &balancer.Config{
			Policy: balancer.WeightedRoundRobin{Reported: true},
		})
		require.NoError(t, err)
		defer func() { require.NoError(t, b.Close()) }()
		require.NoError(t, b.Ready(t.Context()))
		l := &loadStreams{t: t, start: time.Now(), reports: reports}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			watchLoad(ctx, l, b.Nodes()[0], 90*time.Second+time.Millisecond)
		}()
		synctest.Wait()
		test(l, b.Nodes()[0], ended)
		cancel()
		<-ended
	})
}

func TestLoadStreamsEndWithTheirContext(t *testing.T) {
	report := &orcapb.OrcaLoadReport{RpsFractional: 70, ApplicationUtilization: 0.7, Eps: 7}
	watching(t, func(int) ([]*orcapb.OrcaLoadReport, error) { return []*orcapb.OrcaLoadReport{report}, nil },
		func(l *loadStreams, n *balancer.Node, ended <-chan struct{}) {
			r, ok := n.Reported(time.Now())
			require.True(t, ok)
			require.InDelta(t, 70, r.RPS, 0.01)
			require.InDelta(t, 7, r.EPS, 0.01)
			time.Sleep(time.Hour)
			require.Len(t, l.begun, 1, "one stream for each node")
			select {
			case <-ended:
				t.Error("it has ended")
			default:
			}
		})
}

func TestServersWithoutTheLoadServiceAreNotAskedAgain(t *testing.T) {
	watching(t, func(int) ([]*orcapb.OrcaLoadReport, error) { return nil, status.Error(codes.Unimplemented, "") },
		func(l *loadStreams, _ *balancer.Node, ended <-chan struct{}) {
			<-ended
			require.Len(t, l.begun, 1)
		})
}

func TestLoadStreamsThatBreakAreBegunAgainEverMoreRarely(t *testing.T) {
	report := &orcapb.OrcaLoadReport{RpsFractional: 70, ApplicationUtilization: 0.7}
	watching(t, func(n int) ([]*orcapb.OrcaLoadReport, error) {
		if n == 8 {
			return []*orcapb.OrcaLoadReport{report}, io.EOF
		}
		return nil, errors.New("broken")
	}, func(l *loadStreams, _ *balancer.Node, _ <-chan struct{}) {
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		require.Greater(t, len(l.begun), 9)
		for i := 1; i < 8; i++ {
			wait := time.Second << (i - 1)
			require.InDelta(t, wait, l.begun[i]-l.begun[i-1], float64(wait)/2+1)
		}
		require.InDelta(t, time.Second, l.begun[8]-l.begun[7], float64(time.Second)/2+1, "a report ends that")
	})
}
