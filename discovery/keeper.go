package discovery

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"
)

// keeper decides what of a source's yields is passed on, and when. It is the
// state of one supervised watch and reads no clock: ready is called after every
// yield, and when due comes.
type keeper struct {
	service string
	grace   time.Duration // of empty sets; negative: for ever
	window  time.Duration // between sets

	last    []Endpoint // of the set passed on last, sorted
	yielded bool       // there is one
	stale   bool       // an error has been passed on since
	next    time.Time  // when another set may be

	pending     *Set  // to be passed on
	pendingWarn error // what was wrong with it
	pendingErr  error // the failure that came after it

	empty      bool      // an empty set is being held back
	emptyUntil time.Time // and until when
	problems   string    // what the warning about endpoints left out said last

	out []update // to be passed on at once
}

// due is when ready has something to say; zero if only a yield can bring it.
func (k *keeper) due() time.Time {
	switch {
	case k.pending != nil:
		return k.next
	case k.empty && k.grace >= 0:
		return k.emptyUntil
	}
	return time.Time{}
}

// fail takes an error of the source.
func (k *keeper) fail(err error) {
	if isWarning(err) {
		k.out = append(k.out, update{err: err})
		return
	}
	k.empty = false // the source does not say so any more
	k.failed(err)
}

// failed passes an error on: at once, or after the set that came before it.
func (k *keeper) failed(err error) {
	err = resolveError(k.service, err)
	if k.pending != nil {
		k.pendingErr = err
		return
	}
	k.stale = true
	k.out = append(k.out, update{err: err})
}

// offer takes a set of the source.
func (k *keeper) offer(now time.Time, set Set) {
	valid, err := validEndpoints(set.Endpoints)
	switch {
	case len(valid) > 0 || set.Authoritative && err == nil:
	case err != nil: // an answer, but not one that says nobody is there
		k.fail(err)
		return
	case k.yielded && len(k.last) == 0: // known already
	default:
		if !k.empty {
			k.empty, k.emptyUntil = true, now.Add(k.grace)
			k.failed(fmt.Errorf("%w in the source's answer", ErrNoEndpoints))
		}
		return
	}
	set.Endpoints = valid
	k.empty = false
	k.pending, k.pendingErr = &set, nil
	problems := ""
	if err != nil {
		problems = err.Error()
	}
	if problems != k.problems {
		k.problems, k.pendingWarn = problems, err
	}
}

// ready returns what to pass on now, in order.
func (k *keeper) ready(now time.Time) []update {
	if k.pending == nil && k.empty && k.grace >= 0 && !now.Before(k.emptyUntil) {
		k.empty = false
		k.pending = &Set{Authoritative: true} // we vouch for it now
	}
	if k.pending != nil && !now.Before(k.next) {
		k.flush(now)
	}
	out := k.out
	k.out = nil
	return out
}

func (k *keeper) flush(now time.Time) {
	sorted := slices.SortedFunc(slices.Values(k.pending.Endpoints), func(a, b Endpoint) int {
		return cmp.Compare(a.Key(), b.Key())
	})
	if !k.yielded || k.stale || !slices.EqualFunc(sorted, k.last, Endpoint.Equal) {
		k.out = append(k.out, update{set: *k.pending})
		k.yielded, k.stale, k.last, k.next = true, false, sorted, now.Add(k.window)
	}
	if k.pendingWarn != nil {
		k.out = append(k.out, update{err: &Warning{Service: k.service, Err: k.pendingWarn}})
	}
	k.pending, k.pendingWarn = nil, nil
	if k.pendingErr != nil {
		k.failed(k.pendingErr)
		k.pendingErr = nil
	}
}

// maxProblems bounds how many endpoints one warning names.
const maxProblems = 10

// validEndpoints returns the endpoints that can be used and what was wrong with
// the others. Where nothing is wrong it returns its argument.
func validEndpoints(endpoints []Endpoint) ([]Endpoint, error) {
	seen := make(map[string]bool, len(endpoints))
	var (
		valid []Endpoint
		errs  []error
		bad   int
	)
	for i, e := range endpoints {
		err := e.Validate()
		if err == nil && seen[e.Key()] {
			err = fmt.Errorf("discovery: endpoint %q is listed twice, want each Key once: the first counts", e.Key())
		}
		if err == nil {
			seen[e.Key()] = true
			if bad > 0 {
				valid = append(valid, e)
			}
			continue
		}
		if bad == 0 {
			valid = slices.Clone(endpoints[:i])
		}
		if bad++; bad <= maxProblems {
			errs = append(errs, err)
		}
	}
	if bad == 0 {
		return endpoints, nil
	}
	if bad > maxProblems {
		errs = append(errs, fmt.Errorf("discovery: and %d endpoints more", bad-maxProblems))
	}
	return valid, errors.Join(errs...)
}
