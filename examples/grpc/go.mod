module github.com/backstay/backstay/examples/grpc

go 1.26.0

replace (
	github.com/backstay/backstay => ../..
	github.com/backstay/backstay/backstaygrpc => ../../backstaygrpc
)

require (
	github.com/backstay/backstay v0.0.0-00010101000000-000000000000
	github.com/backstay/backstay/backstaygrpc v0.0.0-00010101000000-000000000000
	github.com/stretchr/testify v1.12.1
	google.golang.org/grpc v1.85.0
)

require (
	github.com/cenkalti/backoff/v4 v4.3.0 // indirect
	github.com/hashicorp/golang-lru/v2 v2.0.7 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/net v0.62.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/text v0.43.0 // indirect
	golang.org/x/time v0.16.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260817212433-ac3dfec99bb1 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)
