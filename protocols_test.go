package backstay_test

import (
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay"
	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/discovery"
)

func TestEveryProtocolReachesEveryNodeByTheServicesName(t *testing.T) {
	for protocol, want := range map[backstaytest.Protocol]string{
		backstaytest.HTTP1: "HTTP/1.1", backstaytest.HTTP1TLS: "HTTP/1.1", backstaytest.HTTP2: "HTTP/2.0", backstaytest.H2C: "HTTP/2.0",
	} {
		t.Run(protocol.String(), func(t *testing.T) {
			backstaytest.CheckLeaks(t)
			fleet := backstaytest.NewFleet(t, 3, &backstaytest.FleetConfig{
				Protocol: protocol,
				Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					_, _ = io.WriteString(w, r.Proto+" "+r.Host+" ")
					_, _ = io.Copy(w, r.Body)
				}),
			})
			c := fleetClient(t, fleet, func(_ *backstay.Config, s *backstay.Service) {
				if protocol == backstaytest.H2C {
					s.H2C = backstay.On
				}
			})
			for range 60 {
				resp, err := send(t, t.Context(), c, http.MethodPut, fleet.URL(), "content")
				require.NoError(t, err)
				_, body := read(t, resp)
				require.Equal(t, want+" orders.test content", body)
			}
			for _, s := range fleet.Servers() {
				require.NotZero(t, s.Stats().Requests)
				require.LessOrEqual(t, s.Stats().Connections, 2)
			}
		})
	}
}

// Certificates are those of the service, whatever the node's address.
func TestNodeWithAnotherNamesCertificateIsPassedOver(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 2, &backstaytest.FleetConfig{Protocol: backstaytest.HTTP1TLS})
	impostor := backstaytest.NewServer(t, nil, &backstaytest.ServerConfig{
		Protocol: backstaytest.HTTP1TLS, Authority: fleet.Authority, Addr: "users.test",
	})
	base := fleet.Transport()
	memory := impostor.Transport()
	base.DialContext = memory.DialContext // the impostor's network has no other
	c := newClient(t, &backstay.Config{Base: base, Services: map[string]backstay.Service{
		"orders.test": {Endpoints: discovery.Addrs("users.test:443"), Retry: once()},
		"users.test":  {},
		"alias.test":  {Endpoints: []discovery.Endpoint{{Addr: "users.test:443", ServerName: "users.test"}}},
	}})
	require.Error(t, try(t.Context(), c, "https://orders.test"))
	require.NoError(t, try(t.Context(), c, "https://alias.test"))
	require.Equal(t, 1, impostor.Stats().Requests)
}

func TestEndpointMayBeAUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Host) })}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close(); <-done })
	c := newClient(t, &backstay.Config{Services: map[string]backstay.Service{
		"orders": {Endpoints: discovery.Addrs("unix:" + path)},
	}})
	r := logged(t, c, "http://orders/x")
	require.Equal(t, 200, r.Status)
	require.True(t, strings.HasSuffix(r.Attempts[0].Addr, path))
}

// A node with two addresses is one node: the second is tried where the first
// does not connect, within the same attempt.
func TestNodesOtherAddressIsTriedWithinTheAttempt(t *testing.T) {
	fleet := backstaytest.NewFleet(t, 2, nil)
	dead := fleet.Server(0)
	dead.Kill()
	c := newClient(t, &backstay.Config{Base: fleet.Transport(), Services: map[string]backstay.Service{
		"orders": {Endpoints: []discovery.Endpoint{{ID: "both", Addr: dead.Addr, Fallback: []string{fleet.Server(1).Addr}}}},
	}})
	r := logged(t, c, "http://orders")
	require.Equal(t, 200, r.Status)
	require.Equal(t, []string{"both"}, nodesOf(r))
}
