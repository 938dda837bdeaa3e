package retry

import (
	"fmt"
	"strings"
)

// kinds are the names of the values of an enum from 1; 0 is one that was left
// out.
type kinds []string

func (k kinds) valid(i uint8) bool { return int(i) <= len(k) }

func (k kinds) name(i uint8) string {
	switch {
	case i == 0:
		return ""
	case !k.valid(i):
		return fmt.Sprint(i)
	}
	return k[i-1]
}

// want says what may be chosen.
func (k kinds) want() string {
	return `"` + strings.Join(k[:len(k)-1], `", "`) + `" or "` + k[len(k)-1] + `"`
}

func (k kinds) marshal(what string, i uint8) ([]byte, error) {
	if !k.valid(i) {
		return nil, fmt.Errorf("retry: %s is %d, want %s", what, i, k.want())
	}
	return []byte(k.name(i)), nil
}

func (k kinds) unmarshal(what string, text []byte) (uint8, error) {
	for i, name := range append(kinds{""}, k...) {
		if name == string(text) {
			return uint8(i), nil
		}
	}
	return 0, fmt.Errorf("retry: %s is %q, want %s", what, text, k.want())
}
