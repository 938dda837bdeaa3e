//go:build !unix

package backstaytest

// holdPort does nothing where sockets differ too much.
func holdPort(string) (held string, release func(), ok bool) { return "", nil, false }
