from .api_error import ApiError as ApiError
from .asked import Asked as Asked
from .requests import RequestLimits as RequestLimits
from .requests import parse_chat as parse_chat
from .requests import parse_text as parse_text
