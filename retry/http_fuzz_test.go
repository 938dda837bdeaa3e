package retry_test

import (
	"bytes"
	"io"
	"net/http"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

// Attempts die at any offset of the request's body, in chunks of any size: every
// attempt that reads the body to its end has read exactly the caller's, and a
// body that was taken up but not finished is never sent a second time.
func FuzzBodyReplayAtAnyOffset(f *testing.F) {
	f.Add([]byte("hello, world"), uint16(0), uint16(5), uint8(3), true, false)
	f.Add([]byte("hello, world"), uint16(12), uint16(0), uint8(1), true, false)
	f.Add([]byte("hello, world"), uint16(12), uint16(0), uint8(1), false, true)
	f.Add([]byte(""), uint16(0), uint16(0), uint8(0), false, false)
	f.Add(bytes.Repeat([]byte("x"), 70<<10), uint16(65535), uint16(1), uint8(255), false, false)
	f.Fuzz(func(t *testing.T, text []byte, first, second uint16, chunk uint8, announced, dataErr bool) {
		var src io.Reader = bytes.NewReader(text)
		if dataErr { // the last chunk comes together with the end
			src = iotest.DataErrReader(src)
		}
		b := newBody("")
		b.Reader = src
		req := newRequest(t, t.Context(), "PUT", b)
		if announced {
			req.ContentLength = int64(len(text))
		}
		offsets := []int{int(first), int(second)}
		attempts, streamed, unfinished := 0, false, false
		next := roundTripper(func(req *http.Request) (*http.Response, error) {
			require.False(t, unfinished, "sent again though it was not read to its end")
			limit := -1
			if attempts < len(offsets) {
				limit = offsets[attempts]
			}
			attempts++
			var got []byte
			buf := make([]byte, int(chunk)+1)
			ended := false
			for !ended && (limit < 0 || len(got) < limit) {
				n, err := req.Body.Read(buf)
				got = append(got, buf[:n]...)
				if err != nil {
					require.Equal(t, io.EOF, err)
					ended = true
				}
			}
			_ = req.Body.Close()
			require.True(t, bytes.HasPrefix(text, got), "no duplicate and no lost chunk")
			if ended {
				require.Len(t, got, len(text))
			}
			complete := ended || announced && len(got) == len(text)
			if !streamed && len(got) > 0 {
				streamed, unfinished = true, !complete // later attempts get a copy
			}
			if limit >= 0 {
				return nil, errReset
			}
			return response(200, http.NoBody), nil
		})
		resp, err := newRetrier(t, eager()).Layer(next).RoundTrip(req)
		if err != nil {
			require.ErrorIs(t, err, errReset)
			require.Less(t, attempts, 3)
			require.True(t, unfinished || len(text) > 64<<10)
		} else {
			require.Equal(t, 200, resp.StatusCode)
			require.Equal(t, 3, attempts)
		}
		require.EqualValues(t, 1, b.closes.Load())
	})
}
