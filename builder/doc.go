// Package builder turns a Request into an image: resolve → plan → engine →
// verify → tag. It knows neither queue nor wire format; engines (builder/sandbox,
// builder/kube) and the registry adapter (builder/registry) plug in from below.
package builder
