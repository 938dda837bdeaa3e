package loadreport_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/backstay/backstay/backstaytest"
	"github.com/backstay/backstay/balancer/loadreport"
)

func serve(t *testing.T, s *loadreport.Server, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	backstaytest.CheckLeaks(t)
	server := httptest.NewServer(s.Handler(h))
	t.Cleanup(server.Close)
	t.Cleanup(server.Client().CloseIdleConnections)
	return server
}

func get(t *testing.T, server *httptest.Server) (*http.Response, string) {
	t.Helper()
	resp, err := server.Client().Get(server.URL)
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	return resp, string(body)
}

func TestEveryWayToAnswerCarriesTheReport(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, []byte("body"), 0o600))
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		status  int
		body    string
	}{
		"nothing":     {func(http.ResponseWriter, *http.Request) {}, 200, ""},
		"WriteHeader": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }, 204, ""},
		"Write":       {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("body")) }, 200, "body"},
		"WriteString": {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "body") }, 200, "body"},
		"ReadFrom":    {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.Copy(w, strings.NewReader("body")) }, 200, "body"},
		"a file":      {func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) }, 200, "body"},
		"Flush": {func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			_, _ = io.WriteString(w, "body")
		}, 200, "body"},
		"a controller": {func(w http.ResponseWriter, _ *http.Request) { _ = http.NewResponseController(w).Flush() }, 200, ""},
		"early hints": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(103)
			w.WriteHeader(103)
			w.WriteHeader(418)
		}, 418, ""},
	} {
		t.Run(name, func(t *testing.T) {
			server := serve(t, new(loadreport.Server), c.handler)
			resp, body := get(t, server)
			require.Equal(t, c.status, resp.StatusCode)
			require.Equal(t, c.body, body)
			require.Len(t, resp.Header.Values("endpoint-load-metrics"), 1)
			report, ok := loadreport.FromHeader(resp.Header)
			require.True(t, ok)
			require.Positive(t, report.ServiceTime)
			require.Zero(t, report.InFlight)
		})
	}
}

func TestHandlersOwnReportStands(t *testing.T) {
	server := serve(t, new(loadreport.Server), func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set(loadreport.Header, "TEXT eps=3")
	})
	resp, _ := get(t, server)
	require.Equal(t, []string{"TEXT eps=3"}, resp.Header.Values(loadreport.Header))
}

func TestDeadlinesAndHijackingWorkBeneath(t *testing.T) {
	load := new(loadreport.Server)
	server := serve(t, load, func(w http.ResponseWriter, r *http.Request) {
		if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Errorf("no deadlines: %v", err)
		}
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Errorf("no hijacking: %v", err)
			return
		}
		defer conn.Close()
		_, _ = rw.WriteString("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
		_ = rw.Flush()
	})
	resp, body := get(t, server)
	require.Equal(t, "ok", body)
	require.Empty(t, resp.Header.Values(loadreport.Header))
	require.Zero(t, load.Report().ServiceTime, "it was no answer")
}

func TestRequestsInFlightAreCountedThroughPanics(t *testing.T) {
	load := new(loadreport.Server)
	inside, release := make(chan struct{}), make(chan struct{})
	server := serve(t, load, func(w http.ResponseWriter, r *http.Request) {
		switch r.Header.Get("Do") {
		case "wait":
			inside <- struct{}{}
			<-release
		case "panic":
			panic(http.ErrAbortHandler)
		}
	})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			req, _ := http.NewRequest(http.MethodGet, server.URL, nil)
			req.Header.Set("Do", "wait")
			if resp, err := server.Client().Do(req); err == nil {
				_ = resp.Body.Close()
			}
		})
		<-inside
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL, nil)
	require.NoError(t, err)
	req.Header.Set("Do", "panic")
	_, err = server.Client().Do(req)
	require.Error(t, err)
	resp, _ := get(t, server)
	report, ok := loadreport.FromHeader(resp.Header)
	require.True(t, ok)
	require.InDelta(t, 3, report.InFlight, 0)
	close(release)
	wg.Wait()
	for start := time.Now(); load.Report().InFlight > 0; <-time.After(time.Millisecond) {
		require.Less(t, time.Since(start), 5*time.Second)
	}
}

func TestManyRequestsAtOnceAreCountedRight(t *testing.T) {
	load := new(loadreport.Server)
	h := load.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 500 {
				h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil))
			}
		})
	}
	wg.Wait()
	require.Zero(t, load.Report().InFlight)
	require.Zero(t, load.Report().ServiceTime)
}
