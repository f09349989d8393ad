package kube

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8slabels "k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// Indexes of the cache.
const (
	byBuild = "build"
	byOwner = "owner"
)

// objects is the worker's view of all Jobs and Pods of the installation, kept by one
// informer each, however many builds there are.
type objects struct {
	factory informers.SharedInformerFactory
	jobs    cache.SharedIndexInformer
	pods    cache.SharedIndexInformer

	mu sync.Mutex
	// waiting are who wants to know of changes, by the name of the Job.
	waiting map[string]map[chan struct{}]bool
	// fault is the last error of a list or watch.
	fault error
}

func newObjects(client kubernetes.Interface, cfg Config) (*objects, error) {
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(cfg.Namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = k8slabels.FormatLabels(selector(cfg)) }),
		informers.WithTransform(slim))
	o := &objects{
		factory: factory, jobs: factory.Batch().V1().Jobs().Informer(), pods: factory.Core().V1().Pods().Informer(),
		waiting: make(map[string]map[chan struct{}]bool),
	}
	err := errors.Join(
		o.jobs.AddIndexers(cache.Indexers{byBuild: func(object any) ([]string, error) {
			job, ok := object.(*batchv1.Job)
			if !ok {
				return nil, nil
			}
			return []string{job.Annotations[noteBuild]}, nil
		}}),
		o.pods.AddIndexers(cache.Indexers{byOwner: func(object any) ([]string, error) {
			pod, ok := object.(*corev1.Pod)
			if owner := metav1.GetControllerOf(pod); ok && owner != nil {
				return []string{string(owner.UID)}, nil
			}
			return nil, nil
		}}),
		o.watch(o.jobs), o.watch(o.pods))
	return o, err
}

// slim drops what nobody reads, which is a large part of an object.
func slim(object any) (any, error) {
	if o, ok := object.(metav1.Object); ok && len(o.GetManagedFields()) > 0 {
		o.SetManagedFields(nil)
	}
	return object, nil
}

func (o *objects) watch(informer cache.SharedIndexInformer) error {
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: o.changed, UpdateFunc: func(_, object any) { o.changed(object) }, DeleteFunc: o.changed,
	})
	return errors.Join(err, informer.SetWatchErrorHandlerWithContext(func(ctx context.Context, r *cache.Reflector, err error) {
		o.mu.Lock()
		o.fault = err
		o.mu.Unlock()
		cache.DefaultWatchErrorHandler(ctx, r, err)
	}))
}

// start fills the cache within ctx and keeps it up to date until life is done; then
// stop waits for what it started.
func (o *objects) start(ctx, life context.Context) error {
	o.factory.StartWithContext(life)
	const most = 30 * time.Second
	wait, cancel := context.WithTimeoutCause(ctx, most, errors.New("it took too long"))
	defer cancel()
	if o.factory.WaitForCacheSyncWithContext(wait).Err == nil {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return fmt.Errorf("list Jobs and Pods: %w", errors.Join(context.Cause(wait), o.fault))
}

func (o *objects) stop() { o.factory.Shutdown() }

// changed tells whoever waits for the object's Job.
func (o *objects) changed(object any) {
	if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = gone.Obj
	}
	var name string
	switch object := object.(type) {
	case *batchv1.Job:
		name = object.Name
	case *corev1.Pod:
		if owner := metav1.GetControllerOf(object); owner != nil {
			name = owner.Name
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for waiter := range o.waiting[name] {
		select {
		case waiter <- struct{}{}:
		default:
			// It has not looked since the last change.
		}
	}
}

// subscribe returns a channel that has something after every change of the Job or its
// Pods, until stop is called.
func (o *objects) subscribe(job string) (changes <-chan struct{}, stop func()) {
	waiter := make(chan struct{}, 1)
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.waiting[job] == nil {
		o.waiting[job] = make(map[chan struct{}]bool)
	}
	o.waiting[job][waiter] = true
	return waiter, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.waiting[job], waiter)
		if len(o.waiting[job]) == 0 {
			delete(o.waiting, job)
		}
	}
}

// job returns the Job of that name; nil: the cache has none.
func (o *objects) job(namespace, name string) *batchv1.Job {
	object, ok, err := o.jobs.GetIndexer().GetByKey(namespace + "/" + name)
	if err != nil || !ok {
		return nil
	}
	job, _ := object.(*batchv1.Job)
	return job
}

// jobsOf returns the Jobs of a build.
func (o *objects) jobsOf(buildID string) []*batchv1.Job {
	return typed[*batchv1.Job](o.jobs.GetIndexer().ByIndex(byBuild, buildID))
}

// pod returns the newest Pod of a Job; nil: it has none.
func (o *objects) pod(job types.UID) *corev1.Pod {
	var newest *corev1.Pod
	for _, pod := range typed[*corev1.Pod](o.pods.GetIndexer().ByIndex(byOwner, string(job))) {
		if newest == nil || newest.CreationTimestamp.Before(&pod.CreationTimestamp) {
			newest = pod
		}
	}
	return newest
}

// typed drops what is of another type, and everything when there is no such index.
func typed[T any](all []any, err error) []T {
	if err != nil {
		return nil
	}
	found := make([]T, 0, len(all))
	for _, object := range all {
		if object, ok := object.(T); ok {
			found = append(found, object)
		}
	}
	return found
}
