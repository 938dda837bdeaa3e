package limit

import (
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
)

// body returns its lease when it was read to the end, or closed.
type body struct {
	io.ReadCloser
	lease atomic.Pointer[Concurrency] // Close may come while Read is under way
}

// Read returns the lease at the end, or when there will be no more.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.done()
	}
	return n, err
}

// Close closes the body and returns the lease.
func (b *body) Close() error {
	defer b.done()
	return b.ReadCloser.Close()
}

func (b *body) done() {
	if c := b.lease.Swap(nil); c != nil {
		c.release()
	}
}

// upgraded is the connection of a 101 response, which net/http lets its caller
// write to as well.
type upgraded struct {
	*body
	io.Writer
}

// Read leaves the lease alone: a connection that nothing comes from any more may
// be written to.
func (u *upgraded) Read(p []byte) (int, error) { return u.ReadCloser.Read(p) }

// CloseWrite closes the half that is written to, if the connection can.
func (u *upgraded) CloseWrite() error {
	if c, ok := u.ReadCloser.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return fmt.Errorf("CloseWrite: %w", http.ErrNotSupported)
}
