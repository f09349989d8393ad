package source

import (
	"cmp"
	"context"
	"net/http"
	"net/url"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

const s3Hint = "credentials are taken from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_SESSION_TOKEN), the server from AWS_ENDPOINT_URL or S3_ENDPOINT_URL"

// openS3 speaks to Amazon, or to the server of AWS_ENDPOINT_URL with the bucket in the
// path. Without credentials it asks as anybody.
func (s *Sources) openS3(ctx context.Context, l location, env map[string]string, tag string) (content, error) {
	endpoint := first(env, "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "S3_ENDPOINT_URL")
	u, err := url.Parse(cmp.Or(endpoint, "https://s3.amazonaws.com"))
	if err != nil || u.Host == "" || u.User != nil || (u.Path != "" && u.Path != "/") {
		return content{}, invalid("AWS_ENDPOINT_URL or S3_ENDPOINT_URL is not http(s)://host[:port]")
	}
	if err := s.network.check(u); err != nil {
		return content{}, err
	}
	creds, err := s.s3Credentials(env)
	if err != nil {
		return content{}, err
	}
	options := &minio.Options{
		Creds: creds, Secure: u.Scheme == "https", Transport: s.network, Region: first(env, "AWS_REGION", "AWS_DEFAULT_REGION"),
		MaxRetries: 1, // the worker's business
	}
	if endpoint != "" {
		options.BucketLookup = minio.BucketLookupPath
	}
	client, err := minio.NewCore(u.Host, options)
	if err != nil {
		return content{}, invalid("the source's server or bucket cannot be used: %w", err)
	}
	var get minio.GetObjectOptions
	if tag != "" {
		get.Set("If-None-Match", tag)
	}
	body, info, _, err := client.GetObject(ctx, l.bucket, l.key, get)
	if err != nil {
		answer := minio.ToErrorResponse(err)
		switch {
		case answer.StatusCode == http.StatusNotModified && tag != "":
			return content{}, nil
		case answer.StatusCode == 0:
			return content{}, err
		}
		return content{}, answered(answer.StatusCode, answer.Code+"; "+s3Hint)
	}
	o := content{body: body, size: info.Size}
	if info.ETag != "" {
		o.tag = `"` + info.ETag + `"`
	}
	return o, nil
}

func (s *Sources) s3Credentials(env map[string]string) (*credentials.Credentials, error) {
	id, secret := first(env, "AWS_ACCESS_KEY_ID"), first(env, "AWS_SECRET_ACCESS_KEY")
	switch {
	case id != "" && secret != "":
		return credentials.NewStaticV4(id, secret, first(env, "AWS_SESSION_TOKEN")), nil
	case id != "" || secret != "":
		return nil, invalid("only one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY is set")
	case s.cfg.Ambient:
		return credentials.NewChainCredentials([]credentials.Provider{
			&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}, &credentials.IAM{},
		}), nil
	default:
		return credentials.NewStatic("", "", "", credentials.SignatureAnonymous), nil
	}
}
