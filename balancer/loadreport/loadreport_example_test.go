package loadreport_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/backstay/backstay/balancer/loadreport"
)

func ExampleServer_Handler() {
	load := &loadreport.Server{
		Capacity: -1,                                                                       // no utilization by the count of requests,
		Fill:     func(r *loadreport.Report) { r.CPUUtilization = 0.3; r.ServiceTime = 0 }, // for there is a better one
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") })

	w := httptest.NewRecorder()
	load.Handler(mux).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	fmt.Println(w.Header().Get(loadreport.Header))
	// Output:
	// TEXT cpu_utilization=0.3
}

func ExampleParse() {
	r, ok := loadreport.Parse("TEXT cpu_utilization=0.3,named_metrics.rif=3,named_metrics.service_time=0.012")
	fmt.Println(ok, r.CPUUtilization, r.InFlight, r.ServiceTime)
	// Output:
	// true 0.3 3 12ms
}
