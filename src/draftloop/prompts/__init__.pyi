from .files import PromptFile as PromptFile
from .files import read_prompts as read_prompts
from .files import survey_files as survey_files
from .prompt import Prompt as Prompt
from .prompt import Reading as Reading
from .prompt import SkippedPrompt as SkippedPrompt
from .prompt import Unusable as Unusable
from .prompt import encode_prompt as encode_prompt
