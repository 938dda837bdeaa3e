package balancer

import (
	"net/http"
	"time"

	"github.com/backstay/backstay/balancer/loadreport"
)

// reportFrom takes the report in a response's header, if there is one.
func (l *Lease) reportFrom(now time.Time, resp *http.Response) {
	if r, ok := loadreport.FromHeader(resp.Header); ok {
		l.Report(now, r)
	}
}
